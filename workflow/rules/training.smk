# Preference pairs and a parent checkpoint into a trained one: one stage of one lineage.


rule train:
    input:
        **SUITE_FILES,
        parent=parent,
        pairs=its_pairs,
        rollouts=of_checkpoints("rollouts", SOURCES),
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
    threads: THREADS
    resources:
        mem_mb=4000,
        gpu=int(ON_GPU),
    params:
        settings=stage_settings,
        cases=CASES,
        prompt=config["rollouts"]["prompt"],
        prompt_digest=PROMPTS["rollouts.prompt"],
        gpu=ON_GPU,
        scratch=f"{RESULTS}/trainer/{{lineage}}",
    message:
        "Training {wildcards.lineage}"
    script:
        "../scripts/train.py"
