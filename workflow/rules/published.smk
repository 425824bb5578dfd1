# The paper's released rollouts and labels, into the tables that every later rule reads.


rule fetch_published:
    output:
        touch(FETCHED),
    log:
        f"{LOGS}/fetch_published.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_published.tsv"
    localrule: True
    conda:
        "../envs/agentsafe.yaml"
    params:
        root=RELEASE,
        url=PUBLISHED["url"],
        commit=PUBLISHED["commit"],
        folders=get_release_folders,
    message:
        "Fetching the release at {params.commit} from {params.url}"
    script:
        "../scripts/fetch_published.py"


rule import_published:
    input:
        ancient(get_release),
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
        code=get_code("import_published"),
        root=RELEASE,
        key=get_release_key,
        strict=PUBLISHED["strict"],
        cases=PUBLISHED["cases"],
    message:
        "Importing the released set {wildcards.set}"
    script:
        "../scripts/import_published.py"


rule collect_findings:
    input:
        get_tables("import_reports", RELEASED_SETS),
    output:
        f"{RESULTS}/import_report.parquet",
    log:
        f"{LOGS}/collect_findings.log",
    benchmark:
        f"{RESULTS}/benchmarks/collect_findings.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("collect_findings"),
    message:
        "Collecting the import reports"
    script:
        "../scripts/collect_findings.py"


if not DONORS:  # a run with donors has the check of its suite

    # No output, so that it runs whenever it is requested: it checks the state of now.
    rule preflight:
        log:
            f"{LOGS}/preflight.log",
        localrule: True
        conda:
            "../envs/agentsafe.yaml"
        params:
            config=config,
        message:
            "Checking all that the run needs"
        script:
            "../scripts/preflight.py"
