# The cases of a run and their toolkits: generated, or read from files.

if config["suite"] == "miniature":

    rule make_suite:
        output:
            **SUITE_FILES,
        log:
            f"{LOGS}/make_suite.log",
        benchmark:
            f"{RESULTS}/benchmarks/make_suite.tsv"
        localrule: True
        conda:
            "../envs/agentsafe.yaml"
        params:
            code=get_code("make_suite"),
            cases=MINIATURE["cases"],
            seed=MINIATURE["seed"],
        message:
            "Making {params.cases} cases"
        script:
            "../scripts/make_suite.py"

else:

    rule fetch_suite:
        output:
            f"{FETCHED_SUITE}/all_{{part}}.json",
        log:
            f"{LOGS}/fetch_suite/{{part}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/fetch_suite/{{part}}.tsv"
        localrule: True
        conda:
            "../envs/agentsafe.yaml"
        params:
            url=get_suite_url,
            sha256=lambda wildcards: TOOLEMU[f"{wildcards.part}_sha256"],
            key="toolemu.{part}_file",
        message:
            "Fetching the suite's {wildcards.part} from {params.url}"
        script:
            "../scripts/fetch_suite.py"

    rule take_suite:
        input:
            cases=TOOLEMU["cases_file"],
            toolkits=TOOLEMU["toolkits_file"],
        output:
            **SUITE_FILES,
        log:
            f"{LOGS}/take_suite.log",
        benchmark:
            f"{RESULTS}/benchmarks/take_suite.tsv"
        localrule: True
        conda:
            "../envs/agentsafe.yaml"
        params:
            code=get_code("take_suite"),
            cases=TOOLEMU["cases"],
            user=TOOLEMU["user"],
            now=TOOLEMU["now"],
        message:
            "Reading {params.cases} cases from {input.cases}"
        script:
            "../scripts/take_suite.py"


rule list_cases:
    input:
        **SUITE_FILES,
    output:
        f"{RESULTS}/cases.csv",
    log:
        f"{LOGS}/list_cases.log",
    benchmark:
        f"{RESULTS}/benchmarks/list_cases.tsv"
    localrule: True
    conda:
        "../envs/agentsafe.yaml"
    message:
        "Listing the cases of the suite"
    script:
        "../scripts/list_cases.py"


# No output, so that it runs whenever it is requested: it checks the state of now.
rule preflight:
    input:
        **SUITE_FILES,
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
