#!/usr/bin/env bash
# An example for Slurm: trains on all GPUs of several nodes, and goes on after the time
# limit or a preemption. From the project's folder, on a file system that all nodes see:
#
#   sbatch scripts/slurm.sh --config configs/mvtec.py --workdir /shared/runs/mvtec \
#       --config.data.data_dir=/shared/tensorflow_datasets --config.cache.folder=/shared/cache
#
# Change the lines below to your cluster, or override them: sbatch --nodes=4 scripts/slurm.sh
#SBATCH --job-name=harmoniad
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%j.log
# What follows lets it go on: SIGTERM to the tasks (not to this script) two minutes before
# the limit, on which training saves and exits with status 75; leave to run again; one log.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# One task a node, so that images are read and features kept once a node. JAX finds nodes
# and coordinator by itself, but takes a Slurm task to own one GPU only: name them all. (A
# task a GPU works as well without this line, if each task sees all GPUs of its node: with
# --gpus-per-task or --gpu-bind it does not.)
JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((SLURM_GPUS_ON_NODE - 1)))
export JAX_LOCAL_DEVICE_IDS

# srun does not take over --cpus-per-task since Slurm 22.05. Its status is the highest of
# its tasks.
status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    .venv/bin/python -m harmoniad_jax.train "$@" || status=$?

# Saved: go on, but not for ever. Any other status is the end, or an error.
if [ "$status" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
