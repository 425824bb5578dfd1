# The checkpoints that every lineage starts from: trained here, or linked from where they are.


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
        mem_mb=get_growing(3000),
        runtime=get_growing(MINUTES),
    params:
        code=get_code("pretrain"),
        steps=MINIATURE["base_steps"],
        seed=MINIATURE["seed"],
    message:
        "Pretraining the base checkpoint"
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
        mem_mb=get_growing(3000),
        runtime=get_growing(MINUTES),
    params:
        code=get_code("specialise"),
        source="{source}",
        mixture=lambda wildcards: MINIATURE["sources"][wildcards.source],
        steps=MINIATURE["source_steps"],
        seed=MINIATURE["seed"],
    message:
        "Fine-tuning the base checkpoint into the source {wildcards.source}"
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
        model=lambda wildcards: get_cache_key(config["models"][wildcards.model]),
        files=get_model_files,
    message:
        "Linking the model {wildcards.model} from {params.model[model]}"
    script:
        "../scripts/fetch_model.py"
