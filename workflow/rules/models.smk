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


# Models that emulate or judge, loaded once for all shards of a checkpoint instead of in each job.
# A service and its clients run at the same time on one machine: Snakemake makes one group of them,
# which a cluster gets as one job and which needs --cores for all of them together.


# No benchmark: a service is ended from outside, so that its time says nothing about it.
rule serve_model:
    input:
        f"{RESULTS}/checkpoints/{{model}}",
    output:
        service(f"{RESULTS}/services/{{work}}/{{lineage}}/{{model}}.json"),
    log:
        f"{LOGS}/serve_model/{{work}}/{{lineage}}/{{model}}.log",
    wildcard_constraints:
        work="rollouts|labels",
    conda:
        "../envs/agentsafe.yaml"
    threads: THREADS
    resources:
        mem_mb=get_memory(get_served_model),
        runtime=get_growing(MINUTES),
        gpu=lambda wildcards: get_gpus(wildcards.model),
    params:
        gpu=ON_GPU,
    message:
        "Serving {wildcards.model} to the {wildcards.work} of {wildcards.lineage}"
    script:
        "../scripts/serve_model.py"
