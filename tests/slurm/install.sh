#!/usr/bin/env bash
# Install what start.sh needs, on Debian or Ubuntu and as root. Does nothing where it is there.
set -euo pipefail

if command -v slurmctld slurmd munged > /dev/null; then
    exit
fi
if [[ $EUID != 0 ]] || ! command -v apt-get > /dev/null; then
    echo "not root, or no apt-get: install slurm-wlm and munge to test on SLURM" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge
