# The line through all runs, dominance, and what persists through a second stage.


rule fit_frontier:
    input:
        labels=get_tables("labels", outputs.scored_label_parts(config)),
        audits=get_tables("audits", outputs.scored_rollout_parts(config)),
        cards=get_training("json", SCORED),
    output:
        document=f"{RESULTS}/frontier.json",
        dominance=f"{RESULTS}/dominance.parquet",
        persistence=f"{RESULTS}/persistence.parquet",
    log:
        f"{LOGS}/fit_frontier.log",
    benchmark:
        f"{RESULTS}/benchmarks/fit_frontier.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("fit_frontier"),
        run=RUN,
        settings={"cases": CASES, **SCORING, **config["frontier"]},
    message:
        "Fitting the frontier"
    script:
        "../scripts/fit_frontier.py"
