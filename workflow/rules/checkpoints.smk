# The checkpoints that everything starts from: made from nothing, or taken from where they are.


rule pretrain:
    output:
        directory(f"{RESULTS}/base"),
    log:
        f"{LOGS}/pretrain.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain.tsv"
    conda:
        "../envs/agentsafe.yaml"
    threads: 2
    resources:
        mem_mb=growing(3000),
        runtime=growing(MINUTES),
    params:
        code=code("pretrain"),
        steps=MINIATURE["base_steps"],
        seed=MINIATURE["seed"],
    message:
        "Training a base checkpoint from nothing"
    script:
        "../scripts/pretrain.py"


rule specialise:
    input:
        base=f"{RESULTS}/base",
    output:
        directory(f"{RESULTS}/checkpoints/{{source}}"),
    log:
        f"{LOGS}/specialise/{{source}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/specialise/{{source}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(MINUTES),
    params:
        code=code("specialise"),
        source="{source}",
        mixture=lambda wildcards: MINIATURE["sources"][wildcards.source],
        steps=MINIATURE["source_steps"],
        seed=MINIATURE["seed"],
    message:
        "Making the source {wildcards.source} from the base checkpoint"
    script:
        "../scripts/specialise.py"


rule fetch_model:
    output:
        directory(f"{RESULTS}/checkpoints/{{model}}"),
    log:
        f"{LOGS}/fetch_model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_model/{{model}}.tsv"
    localrule: True
    conda:
        "../envs/agentsafe.yaml"
    params:
        model=lambda wildcards: shaping(config["models"][wildcards.model]),
        files=model_files,
    message:
        "Taking the model {wildcards.model} from {params.model[model]}"
    script:
        "../scripts/fetch_model.py"
