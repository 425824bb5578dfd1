# The suite of cases, and the checkpoints that everything starts from.


rule make_suite:
    output:
        **SUITE_FILES,
    log:
        f"{LOGS}/make_suite.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_suite.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        cases=MINIATURE["cases"],
        seed=MINIATURE["seed"],
    message:
        "Making {params.cases} cases"
    script:
        "../scripts/make_suite.py"


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
        mem_mb=3000,
    params:
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
        mem_mb=3000,
    params:
        source="{source}",
        mixture=lambda wildcards: MINIATURE["sources"][wildcards.source],
        steps=MINIATURE["source_steps"],
        seed=MINIATURE["seed"],
    message:
        "Making the source {wildcards.source} from the base checkpoint"
    script:
        "../scripts/specialise.py"
