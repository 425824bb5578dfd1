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


# A language model on the world's demonstrations: a stage of sft whose rollouts are scripted.
rule warm_up:
    input:
        **SUITE_FILES,
        base=lambda wildcards: get_checkpoint(get_warm_up(wildcards)["model"]),
    output:
        checkpoint=directory(f"{RESULTS}/checkpoints/{{source}}"),
        log=f"{RESULTS}/warm_ups/{{source}}.parquet",
        card=f"{RESULTS}/warm_ups/{{source}}.json",
    log:
        f"{LOGS}/warm_up/{{source}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/warm_up/{{source}}.tsv"
    wildcard_constraints:
        source="|".join(map(re.escape, WARM_UPS)) or "none",
    conda:
        "../envs/agentsafe.yaml"
    threads: lambda wildcards: get_own_threads(*get_source_itself(wildcards))
    resources:
        mem_mb=get_memory(get_source_itself, training=config["training"]),
        runtime=get_growing(MINUTES),
        gpu=1,
    params:
        code=get_code("warm_up"),
        settings=get_warm_up,
        prompt=lambda wildcards: grid.prompt_of(config, wildcards.source),
        prompt_digest=lambda wildcards: PROMPTS[f"sources.{wildcards.source}"],
        template_options=lambda wildcards: get_chat_options(wildcards.source),
        scratch=f"{RESULTS}/trainer/{{source}}",
    message:
        "Warming up the source {wildcards.source}"
    script:
        "../scripts/warm_up.py"


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
