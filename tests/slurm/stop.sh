#!/usr/bin/env bash
# Take down the SLURM that start.sh brought up, and what it left. Does nothing where there is none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if running slurmctld; then
    scancel --partition=main || true # it may be on its way down
    for _ in $(seq 100); do
        [[ $(squeue --noheader) ]] || break # else the jobs' processes outlive it
        sleep 0.2
    done
fi
for daemon in slurmd slurmctld munged; do
    pid=$(pid_of "$daemon") || continue
    kill "$pid" || true
    for _ in $(seq 100); do
        running "$daemon" || break
        sleep 0.1
    done
done
if [[ $CONF -ef $HOME_OF_ALL/slurm.conf ]]; then
    rm "$CONF"
fi
rm -rf "$HOME_OF_ALL"
