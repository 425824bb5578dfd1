# Rollouts into labels: each judge's score of each rollout on each metric. People are a judge as well:
# what they are to label is exported, and their labels are imported.


rule label_rollouts:
    input:
        **SUITE_FILES,
        rollouts=f"{RESULTS}/rollouts/{{lineage}}/{{shard}}.parquet",
        model=get_judge_model,
    output:
        f"{RESULTS}/labels/{{judge}}/{{lineage}}/{{shard}}.parquet",
    log:
        f"{LOGS}/label_rollouts/{{judge}}/{{lineage}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/label_rollouts/{{judge}}/{{lineage}}/{{shard}}.tsv"
    wildcard_constraints:
        judge="|".join(name for name in config["judges"] if name not in PEOPLE) or "none",
    group:
        get_group_to_label
    conda:
        "../envs/agentsafe.yaml"
    threads: get_threads(get_models_to_label)
    resources:
        mem_mb=get_memory(get_models_to_label),
        runtime=get_growing(MINUTES),
        gpu=lambda wildcards: get_gpus(*get_models_to_label(wildcards)),
    params:
        code=get_code("label_rollouts", get_unused_to_label),
        judge=get_judge,
        model=lambda wildcards: get_cache_key(config["models"].get(get_judge(wildcards)["model"])),
        prompt=lambda wildcards: PROMPTS[f"judges.{wildcards.judge}.prompt"],
        gpu=lambda wildcards: is_on_gpu(*get_models_to_label(wildcards)),
        scratch=f"{RESULTS}/journals/labels/{{judge}}/{{lineage}}/{{shard}}.jsonl",
    message:
        "Judging the rollouts of {wildcards.lineage} by {wildcards.judge}"
    script:
        "../scripts/label_rollouts.py"


rule import_labels:
    input:
        labels=ancient(get_label_files),
        rollouts=f"{RESULTS}/rollouts/{{table}}.parquet",
        known=lambda wildcards: get_tables(
            "rollouts", outputs.parts_beside(config, wildcards.table)
        ),
    output:
        f"{RESULTS}/labels/{{people}}/{{table}}.parquet",
    log:
        f"{LOGS}/import_labels/{{people}}/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/import_labels/{{people}}/{{table}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("import_labels"),
        key=get_labels_key,
        metrics=lambda wildcards: config["judges"][wildcards.people]["metrics"],
    message:
        "Importing the labels of {wildcards.table} by {wildcards.people}"
    script:
        "../scripts/import_labels.py"


rule export_rollouts:
    input:
        **get_suite_files(),
        rollouts=get_tables("rollouts", outputs.parts_to_label(config)),
    output:
        sheet=f"{RESULTS}/to_label/sheet.csv",
        page=f"{RESULTS}/to_label/page.html",
    log:
        f"{LOGS}/export_rollouts.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_rollouts.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("export_rollouts"),
        settings=config["to_label"],
        prompt=PROMPTS["to_label.prompt"],
        run=RUN,
    message:
        "Exporting {params.settings[rollouts]} rollouts to label"
    script:
        "../scripts/export_rollouts.py"


rule measure_agreement:
    input:
        get_tables("labels", outputs.label_parts(config)),
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
        code=get_code("measure_agreement"),
        settings={name: SCORING[name] for name in ("resamples", "seed", "confidence")},
    message:
        "Measuring the agreement of judges"
    script:
        "../scripts/measure_agreement.py"


rule measure_calibration:
    input:
        get_tables("labels", outputs.label_parts(config)),
    output:
        f"{RESULTS}/calibration.parquet",
    log:
        f"{LOGS}/measure_calibration.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_calibration.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("measure_calibration"),
        settings={name: SCORING[name] for name in ("resamples", "seed", "confidence")},
    message:
        "Measuring the calibration of judges"
    script:
        "../scripts/measure_calibration.py"
