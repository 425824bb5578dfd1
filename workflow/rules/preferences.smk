# One judge's labels, into preference pairs: references to rollouts, one set per objective.


rule build_preferences:
    input:
        labels=labels_to_pair,
        audits=audits_to_pair,
    output:
        pairs=f"{RESULTS}/preferences/{{judge}}/{{objective}}.parquet",
        summary=f"{RESULTS}/preferences/{{judge}}/{{objective}}.summary.parquet",
    log:
        f"{LOGS}/build_preferences/{{judge}}/{{objective}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/build_preferences/{{judge}}/{{objective}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        min_gap=config["preferences"]["min_gap"],
        min_chosen=config["preferences"]["min_chosen"],
        mode=config["preferences"]["mode"],
        consistency=config["preferences"]["consistency"],
        max_pairs_per_case=config["preferences"]["max_pairs_per_case"],
        seed=config["preferences"]["seed"],
        pairs_from=config["preferences"]["pairs_from"],
    message:
        "Pairing rollouts for {wildcards.objective} by {wildcards.judge}'s labels"
    script:
        "../scripts/build_preferences.py"
