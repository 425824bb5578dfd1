# The line through all runs, what dominates what, and what survives a second stage.


rule fit_frontier:
    input:
        labels=scored("labels"),
        audits=scored("audits"),
        cards=training("json", SCORED),
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
        run=RUN,
        cases=CASES,
        draws=config["scores"]["draws"],
        seed=config["scores"]["seed"],
        resample=config["scores"]["resample"],
        confidence=config["scores"]["confidence"],
        level=config["frontier"]["level"],
        equivalence_margin=config["frontier"]["equivalence_margin"],
        solver=config["frontier"]["solver"],
    message:
        "Fitting the frontier"
    script:
        "../scripts/fit_frontier.py"
