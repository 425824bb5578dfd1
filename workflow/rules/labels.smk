# Rollouts into labels: each judge's score of each rollout on each metric.


rule label_rollouts:
    input:
        **SUITE_FILES,
        rollouts=f"{RESULTS}/rollouts/{{lineage}}/{{shard}}.parquet",
        model=judging_model,
        service=lambda wildcards: service_of(judging(wildcards)["model"], "labels", wildcards),
    output:
        f"{RESULTS}/labels/{{judge}}/{{lineage}}/{{shard}}.parquet",
    log:
        f"{LOGS}/label_rollouts/{{judge}}/{{lineage}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/label_rollouts/{{judge}}/{{lineage}}/{{shard}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(loaded_to_judge),
        runtime=growing(MINUTES),
        gpu=lambda wildcards: gpus(*loaded_to_judge(wildcards)),
    params:
        code=code("label_rollouts", unused_to_judge),
        judge=judging,
        model=lambda wildcards: shaping(config["models"].get(judging(wildcards)["model"])),
        prompt=lambda wildcards: PROMPTS[f"judges.{wildcards.judge}.prompt"],
        gpu=ON_GPU,
        scratch=f"{RESULTS}/journals/labels/{{judge}}/{{lineage}}/{{shard}}.jsonl",
    message:
        "Judging the rollouts of {wildcards.lineage} by {wildcards.judge}"
    script:
        "../scripts/label_rollouts.py"


rule measure_agreement:
    input:
        of_all("labels"),
    output:
        agreement=f"{RESULTS}/agreement.parquet",
        confusion=f"{RESULTS}/confusion.parquet",
    log:
        f"{LOGS}/measure_agreement.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_agreement.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=code("measure_agreement"),
        settings={k: v for k, v in SCORING.items() if k != "resample"},
    message:
        "Measuring how far judges agree"
    script:
        "../scripts/measure_agreement.py"
