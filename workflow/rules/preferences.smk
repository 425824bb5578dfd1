# Labels of one judge into preference pairs: references to rollouts, one set per objective.


rule build_preferences:
    input:
        labels=get_pair_labels,
        audits=get_pair_audits,
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
        code=get_code("build_preferences"),
        settings=cache_key(PreferenceSettings, config["preferences"]),
    message:
        "Pairing rollouts for {wildcards.objective} by {wildcards.judge}'s labels"
    script:
        "../scripts/build_preferences.py"
