# Models that emulate or judge, loaded once for all shards of a checkpoint instead of in each job.
# A service and the jobs that ask it run at the same time on one machine: Snakemake makes one group
# of them, which a cluster gets as one job. It takes --cores for all of them at once.


# It has no benchmark: it is ended from outside, and how long it ran says nothing about it.
rule serve_model:
    input:
        f"{RESULTS}/checkpoints/{{model}}",
    output:
        service(f"{RESULTS}/services/{{work}}/{{lineage}}/{{model}}.json"),
    log:
        f"{LOGS}/serve_model/{{work}}/{{lineage}}/{{model}}.log",
    wildcard_constraints:
        work="rollouts|labels",
    conda:
        "../envs/agentsafe.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(one_served),
        runtime=growing(MINUTES),
        gpu=lambda wildcards: gpus(wildcards.model),
    params:
        gpu=ON_GPU,
    message:
        "Serving {wildcards.model} to the {wildcards.work} of {wildcards.lineage}"
    script:
        "../scripts/serve_model.py"
