# The paper's released rollouts and labels, into the tables that every later rule reads.


rule fetch_published:
    output:
        touch(FETCHED),
    log:
        f"{LOGS}/fetch_published.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_published.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        root=RELEASE,
        url=PUBLISHED["url"],
        commit=PUBLISHED["commit"],
        folders=release_folders,
    message:
        "Fetching the release at {params.commit} from {params.url}"
    script:
        "../scripts/fetch_published.py"


rule import_published:
    input:
        ancient(fetched_release),
    output:
        rollouts=f"{RESULTS}/rollouts/{{set}}.parquet",
        labels=f"{RESULTS}/labels/{{set}}.parquet",
        audits=f"{RESULTS}/audits/{{set}}.parquet",
        cases=f"{RESULTS}/cases/{{set}}.parquet",
        report=f"{RESULTS}/import_reports/{{set}}.parquet",
    log:
        f"{LOGS}/import_published/{{set}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/import_published/{{set}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        root=RELEASE,
        key=release_key,
        strict=PUBLISHED["strict"],
        cases=config["split"]["cases"],
    message:
        "Importing the released set {wildcards.set}"
    script:
        "../scripts/import_published.py"


rule audit_rollouts:
    input:
        audits=of_sets("audits", LABEL_SETS + RESULT_SETS),
        reports=of_sets("import_reports", LABEL_SETS + RESULT_SETS),
    output:
        audit=f"{RESULTS}/audit.parquet",
        report=f"{RESULTS}/import_report.parquet",
    log:
        f"{LOGS}/audit_rollouts.log",
    benchmark:
        f"{RESULTS}/benchmarks/audit_rollouts.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        sets=LABEL_SETS + RESULT_SETS,
    message:
        "Counting what is odd in the rollouts"
    script:
        "../scripts/audit_rollouts.py"
