# Labels of the test cases into points: scores of each run, and its deltas against its source.


rule score_runs:
    input:
        labels=get_tables("labels", outputs.scored_label_parts(config)),
        audits=get_tables("audits", outputs.scored_rollout_parts(config)),
        cards=get_training("json", SCORED),
    output:
        f"{RESULTS}/points.parquet",
    log:
        f"{LOGS}/score_runs.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_runs.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("score_runs"),
        settings={"cases": CASES, **SCORING},
    message:
        "Scoring all runs on their test cases"
    script:
        "../scripts/score_runs.py"
