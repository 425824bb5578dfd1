# Checkpoints into rollouts, and what is odd about them. Trained and source checkpoints go the
# same way: sources play all cases, trained ones the test half of their seed.


rule roll_out:
    input:
        **SUITE_FILES,
        checkpoint=f"{RESULTS}/checkpoints/{{lineage}}",
        emulator=of_model(EMULATOR["model"]),
        service=lambda wildcards: service_of(EMULATOR["model"], "rollouts", wildcards),
    output:
        rollouts=f"{RESULTS}/rollouts/{{lineage}}/{{shard}}.parquet",
        audits=f"{RESULTS}/audits/{{lineage}}/{{shard}}.parquet",
    log:
        f"{LOGS}/roll_out/{{lineage}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/roll_out/{{lineage}}/{{shard}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(loaded_to_play),
        runtime=growing(MINUTES),
        gpu=lambda wildcards: gpus(*loaded_to_play(wildcards)),
    params:
        code=code("roll_out", unused_to_play),
        settings={k: v for k, v in config["rollouts"].items() if k != "batch"},
        prompt=PROMPTS["rollouts.prompt"],
        model=lambda wildcards: shaping(served(wildcards)),
        emulator=EMULATOR,
        tools=shaping(config["models"].get(EMULATOR["model"])),
        emulator_prompt=PROMPTS["emulator.prompt"],
        cases=CASES,
        shards=config["rollouts"]["shards"],
        gpu=ON_GPU,
        scratch=f"{RESULTS}/journals/rollouts/{{lineage}}/{{shard}}.jsonl",
    message:
        "Letting {wildcards.lineage} play its cases (shard {wildcards.shard} of {params.shards})"
    script:
        "../scripts/roll_out.py"


rule audit_rollouts:
    input:
        audited(),
    output:
        f"{RESULTS}/audit.parquet",
    log:
        f"{LOGS}/audit_rollouts.log",
    benchmark:
        f"{RESULTS}/benchmarks/audit_rollouts.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=code("audit_rollouts"),
        sets=audited_sets(),
    message:
        "Counting what is odd in the rollouts"
    script:
        "../scripts/audit_rollouts.py"
