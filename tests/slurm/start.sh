#!/usr/bin/env bash
# Bring up a SLURM of one machine for the tests: munged, slurmctld and slurmd on loopback. Its node
# has two GPUs, which are device files, and more processors and memory than the machine: nothing
# holds jobs to them. What runs already is left as it is, and so is a SLURM that is not its own.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ -e $CONF && ! $CONF -ef $HOME_OF_ALL/slurm.conf ]]; then
    echo "$CONF is there already: this machine has a SLURM of its own" >&2
    exit 2
fi
mkdir -p "$HOME_OF_ALL"/{state,spool}
chmod 755 "$HOME_OF_ALL"

host=$(hostname -s)
cat > "$HOME_OF_ALL/slurm.conf" << EOF
ClusterName=agentsafe
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$HOME_OF_ALL/munge.socket,cred_expire=5
StateSaveLocation=$HOME_OF_ALL/state
SlurmdSpoolDir=$HOME_OF_ALL/spool
SlurmctldPidFile=$HOME_OF_ALL/slurmctld.pid
SlurmdPidFile=$HOME_OF_ALL/slurmd.pid
SlurmctldLogFile=$HOME_OF_ALL/slurmctld.log
SlurmdLogFile=$HOME_OF_ALL/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=600
ReturnToService=2
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=32000 Gres=gpu:small:1,gpu:large:1
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE
EOF
cat > "$HOME_OF_ALL/gres.conf" << EOF
NodeName=$host Name=gpu Type=small File=/dev/null
NodeName=$host Name=gpu Type=large File=/dev/zero
EOF
[[ -s $HOME_OF_ALL/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom > "$HOME_OF_ALL/munge.key")
mkdir -p "$(dirname "$CONF")"
[[ -e $CONF ]] || ln -s "$HOME_OF_ALL/slurm.conf" "$CONF" # job steps lose SLURM_CONF

running munged || munged --force --socket="$HOME_OF_ALL/munge.socket" \
    --key-file="$HOME_OF_ALL/munge.key" --pid-file="$HOME_OF_ALL/munged.pid" \
    --log-file="$HOME_OF_ALL/munged.log" --seed-file="$HOME_OF_ALL/munged.seed"
running slurmctld || slurmctld -f "$HOME_OF_ALL/slurm.conf"
running slurmd || slurmd -f "$HOME_OF_ALL/slurm.conf" # gres.conf is looked for beside it

for _ in $(seq 100); do
    state=$(scontrol show node "$host" 2> /dev/null | grep -o 'State=[^ ]*') || state=State=UNKNOWN
    [[ $state =~ UNKNOWN|DOWN|INVALID|NOT_RESPONDING ]] || exit 0
    sleep 0.2
done
echo "the node did not come up; see $HOME_OF_ALL/slurmctld.log and slurmd.log" >&2
exit 1
