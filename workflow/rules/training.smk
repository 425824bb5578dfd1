# Preference pairs and a parent checkpoint into a trained one: one stage of one lineage.


# The reference of DPO, computed once per parent: it depends on no β, seed or objective.
rule reference:
    input:
        **SUITE_FILES,
        parent=f"{RESULTS}/checkpoints/{{lineage}}",
        base=get_base,
        rollouts=get_pair_rollouts(),
        own=get_own_rollouts,
    output:
        f"{RESULTS}/reference/{{lineage}}.parquet",
    log:
        f"{LOGS}/reference/{{lineage}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/reference/{{lineage}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    threads: lambda wildcards: get_own_threads(*get_source(wildcards))
    resources:
        mem_mb=get_memory(get_source, training=config["training"]),
        runtime=get_growing(MINUTES),
        gpu=lambda wildcards: int(is_on_gpu(*get_source(wildcards))),
    params:
        code=get_code("reference"),
        settings=grid.reference_settings(config),
        prompt=get_prompt,
        prompt_digest=get_prompt_digest,
        template_options=get_template_options,
        gpu=lambda wildcards: is_on_gpu(*get_source(wildcards)),
    message:
        "Computing log-probabilities of rollouts under {wildcards.lineage}"
    script:
        "../scripts/reference.py"


rule train:
    input:
        **SUITE_FILES,
        parent=get_parent,
        base=get_base_of_parent,
        cards_before=get_earlier_cards,
        reference=get_reference,
        pairs=get_pairs,
        rollouts=get_pair_rollouts(),
        own=get_own_rollouts,
    output:
        checkpoint=directory(f"{RESULTS}/checkpoints/{{lineage}}"),
        log=f"{RESULTS}/training/{{lineage}}.parquet",
        card=f"{RESULTS}/training/{{lineage}}.json",
    log:
        f"{LOGS}/train/{{lineage}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{{lineage}}.tsv"
    wildcard_constraints:
        lineage=r"[^/+]+\+[^/]+",
    conda:
        "../envs/agentsafe.yaml"
    threads: lambda wildcards: get_own_threads(*get_source(wildcards))
    resources:
        mem_mb=get_memory(
            get_source, processes=config["training"]["gpus"], training=config["training"]
        ),
        runtime=get_growing(MINUTES),
        gpu=lambda wildcards: (config["training"]["gpus"] * is_on_gpu(*get_source(wildcards))),
    params:
        code=get_code("train"),
        settings=get_training_settings,
        cases=CASES,
        prompt=get_prompt,
        prompt_digest=get_prompt_digest,
        template_options=get_template_options,
        gpu=lambda wildcards: is_on_gpu(*get_source(wildcards)),
        scratch=f"{RESULTS}/trainer/{{lineage}}",
        trackers=f"{RESULTS}/trackers",
        base_model=get_base_name,
    message:
        "Training {wildcards.lineage}"
    script:
        "../scripts/train.py"
