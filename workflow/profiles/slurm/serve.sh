#!/bin/bash
# A model server as a SLURM job; 'make serve SBATCH=1' submits it with the server's command.
# An account, a partition or a GPU type is added here, as in config.yaml beside it.
#SBATCH --job-name=agentsafe-serve
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --output=logs/slurm/serve-%j.log

echo "This server's address is http://$(hostname -f):PORT/v1, with the port below."
echo "$@"
exec "$@"
