# Figures, the paper's tables, and one self-contained page.


rule plot_frontier:
    input:
        points=f"{RESULTS}/points.parquet",
        document=f"{RESULTS}/frontier.json",
        persistence=f"{RESULTS}/persistence.parquet",
    output:
        report(
            get_figures(["frontier", "paths", "persistence"]),
            category="Frontier",
            caption="../report/frontier.rst",
        ),
        charts=get_figures(["frontier", "paths", "persistence"], ["json"]),
    log:
        f"{LOGS}/plot_frontier.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_frontier.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("plot_frontier"),
    message:
        "Drawing the frontier"
    script:
        "../scripts/plot_frontier.py"


rule plot_models:
    input:
        document=f"{RESULTS}/frontier.json",
    output:
        report(get_figures(["models"]), category="Models", caption="../report/models.rst"),
        charts=get_figures(["models"], ["json"]),
    log:
        f"{LOGS}/plot_models.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_models.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("plot_models"),
    message:
        "Drawing the models"
    script:
        "../scripts/plot_models.py"


rule plot_audit:
    input:
        f"{RESULTS}/audit.parquet",
    output:
        report(get_figures(["audit"]), category="Data", caption="../report/audit.rst"),
        charts=get_figures(["audit"], ["json"]),
    log:
        f"{LOGS}/plot_audit.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_audit.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("plot_audit"),
    message:
        "Drawing the audit"
    script:
        "../scripts/plot_audit.py"


rule plot_format_validity:
    input:
        f"{RESULTS}/points.parquet",
    output:
        report(
            get_figures(["format_validity"]),
            category="Data",
            caption="../report/format_validity.rst",
        ),
        charts=get_figures(["format_validity"], ["json"]),
    log:
        f"{LOGS}/plot_format_validity.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_format_validity.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("plot_format_validity"),
    message:
        "Drawing format validity"
    script:
        "../scripts/plot_format_validity.py"


rule plot_preferences:
    input:
        get_preference_sets(".summary"),
    output:
        report(get_figures(["preferences"]), category="Data", caption="../report/preferences.rst"),
        charts=get_figures(["preferences"], ["json"]),
    log:
        f"{LOGS}/plot_preferences.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_preferences.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("plot_preferences"),
    message:
        "Drawing the preference sets"
    script:
        "../scripts/plot_preferences.py"


rule plot_training:
    input:
        get_all_training("parquet"),
    output:
        report(get_figures(["training"]), category="Training", caption="../report/training.rst"),
        charts=get_figures(["training"], ["json"]),
    log:
        f"{LOGS}/plot_training.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_training.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("plot_training"),
    message:
        "Drawing the training runs"
    script:
        "../scripts/plot_training.py"


rule plot_agreement:
    input:
        agreement=f"{RESULTS}/agreement.parquet",
        confusion=f"{RESULTS}/confusion.parquet",
    output:
        report(get_figures(["agreement"]), category="Data", caption="../report/agreement.rst"),
        charts=get_figures(["agreement"], ["json"]),
    log:
        f"{LOGS}/plot_agreement.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_agreement.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("plot_agreement"),
    message:
        "Drawing the agreement of judges"
    script:
        "../scripts/plot_agreement.py"


rule plot_calibration:
    input:
        f"{RESULTS}/calibration.parquet",
    output:
        report(get_figures(["calibration"]), category="Data", caption="../report/calibration.rst"),
        charts=get_figures(["calibration"], ["json"]),
    log:
        f"{LOGS}/plot_calibration.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_calibration.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("plot_calibration"),
    message:
        "Drawing the calibration of judges"
    script:
        "../scripts/plot_calibration.py"


rule write_tables:
    input:
        points=f"{RESULTS}/points.parquet",
        document=f"{RESULTS}/frontier.json",
        persistence=f"{RESULTS}/persistence.parquet",
        audit=f"{RESULTS}/audit.parquet",
        agreement=get_found("agreement.parquet"),
        calibration=get_found("calibration.parquet"),
        cards=get_all_training("json"),
        training=get_all_training("parquet"),
        donors=get_donor_tables("summary"),
    output:
        directory(f"{RESULTS}/tables"),
    log:
        f"{LOGS}/write_tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_tables.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("write_tables"),
    message:
        "Writing LaTeX and CSV tables"
    script:
        "../scripts/write_tables.py"


rule write_report:
    input:
        audit=f"{RESULTS}/audit.parquet",
        import_report=get_found("import_report.parquet"),
        agreement=get_found("agreement.parquet"),
        calibration=get_found("calibration.parquet"),
        summaries=get_preference_sets(".summary"),
        points=get_found("points.parquet"),
        document=get_found("frontier.json"),
        dominance=get_found("dominance.parquet"),
        persistence=get_found("persistence.parquet"),
        cards=get_all_training("json"),
        training=get_all_training("parquet"),
        donors=get_donor_tables("summary"),
        charts=get_figures(FIGURES, ["json"]),
        rollouts=get_tables("rollouts", outputs.rollout_parts(config)),
        labels=get_tables("labels", outputs.label_parts(config)),
    output:
        report(f"{RESULTS}/report.html", category="Report", caption="../report/report.rst"),
    log:
        f"{LOGS}/write_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_report.tsv"
    conda:
        "../envs/agentsafe.yaml"
    params:
        code=get_code("write_report"),
        config=config,
    message:
        "Writing the report"
    script:
        "../scripts/write_report.py"
