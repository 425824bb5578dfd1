# Labels of the test cases, into points: each run's scores and its distance from its source.


rule score_runs:
    input:
        labels=scored("labels"),
        audits=scored("audits"),
        cards=training("json", SCORED),
    output:
        f"{RESULTS}/points.parquet",
    log:
        f"{LOGS}/score_runs.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_runs.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=code("score_runs"),
        settings={"cases": CASES, **SCORING},
    message:
        "Scoring all runs on their test cases"
    script:
        "../scripts/score_runs.py"
