# Rollouts into labels: each judge's score of each rollout on each metric.


rule label_rollouts:
    input:
        **SUITE_FILES,
        rollouts=f"{RESULTS}/rollouts/{{lineage}}/{{shard}}.parquet",
    output:
        f"{RESULTS}/labels/{{judge}}/{{lineage}}/{{shard}}.parquet",
    log:
        f"{LOGS}/label_rollouts/{{judge}}/{{lineage}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/label_rollouts/{{judge}}/{{lineage}}/{{shard}}.tsv"
    conda:
        "../envs/agentsafe.yaml"
    threads: 1
    params:
        replicates=1,
    message:
        "Judging the rollouts of {wildcards.lineage} by {wildcards.judge}"
    script:
        "../scripts/label_rollouts.py"
