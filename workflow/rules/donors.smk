# Labelled rollouts that were made elsewhere, of the paper's release or of an earlier run, into tables
# beside the sources' own: they make pairs, and nothing else.

if RELEASED_SETS:

    include: "published.smk"


rule import_donor:
    input:
        **SUITE_FILES,
        rollouts=get_released_tables("rollouts"),
        labels=get_released_tables("labels"),
        audits=get_released_tables("audits"),
        played=get_released_tables("cases"),
    output:
        rollouts=f"{RESULTS}/donors/{{donor}}/rollouts.parquet",
        labels=f"{RESULTS}/donors/{{donor}}/labels.parquet",
        audits=f"{RESULTS}/donors/{{donor}}/audits.parquet",
        summary=f"{RESULTS}/donors/{{donor}}/summary.parquet",
    log:
        f"{LOGS}/import_donor/{{donor}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/import_donor/{{donor}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("import_donor"),
        donor=get_donor,
        origin=lambda wildcards: grid.origin(config, wildcards.donor),
        tables=get_run_digest,
    message:
        "Importing the donor {wildcards.donor}: {params.origin}"
    script:
        "../scripts/import_donor.py"
