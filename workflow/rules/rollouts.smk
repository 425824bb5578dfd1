# Checkpoints into rollouts, and their anomalies. Source and trained checkpoints take the same path:
# sources act on all cases, trained ones on the test half of their seed. Where donors' rollouts train
# instead of the sources' own, sources act on the cases that are tested.


rule roll_out:
    input:
        **SUITE_FILES,
        checkpoint=f"{RESULTS}/checkpoints/{{lineage}}",
        base=get_base,
        emulator=get_checkpoint(EMULATOR["model"]),
    output:
        rollouts=f"{RESULTS}/rollouts/{{lineage}}/{{shard}}.parquet",
        audits=f"{RESULTS}/audits/{{lineage}}/{{shard}}.parquet",
    log:
        f"{LOGS}/roll_out/{{lineage}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/roll_out/{{lineage}}/{{shard}}.tsv"
    group:
        get_group_to_roll_out
    conda:
        "../envs/agentsafe.yaml"
    threads: get_threads(get_models_to_roll_out)
    resources:
        mem_mb=get_memory(get_models_to_roll_out, kept=get_kept_base),
        runtime=get_growing(MINUTES),
        gpu=lambda wildcards: get_gpus(*get_models_to_roll_out(wildcards)),
    params:
        code=get_code("roll_out", get_unused_to_roll_out),
        settings=get_rollout_settings,
        prompt=get_prompt_digest,
        model=lambda wildcards: get_cache_key(get_model(wildcards)),
        emulator=EMULATOR,
        tools=get_cache_key(config["models"].get(EMULATOR["model"])),
        emulator_prompt=PROMPTS["emulator.prompt"],
        cases=get_cases,
        shards=config["rollouts"]["shards"],
        gpu=lambda wildcards: is_on_gpu(*get_models_to_roll_out(wildcards)),
        scratch=f"{RESULTS}/journals/rollouts/{{lineage}}/{{shard}}.jsonl",
    message:
        "Rolling out {wildcards.lineage} (shard {wildcards.shard} of {params.shards})"
    script:
        "../scripts/roll_out.py"


rule audit_rollouts:
    input:
        get_tables("audits", outputs.rollout_parts(config)) + get_donor_tables("audits"),
    output:
        f"{RESULTS}/audit.parquet",
    log:
        f"{LOGS}/audit_rollouts.log",
    benchmark:
        f"{RESULTS}/benchmarks/audit_rollouts.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("audit_rollouts"),
        sets=outputs.rollout_sets(config) + [f"donor {name}" for name in DONORS],
    message:
        "Counting anomalies in the rollouts"
    script:
        "../scripts/audit_rollouts.py"
