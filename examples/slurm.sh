#!/bin/bash
# Several machines under Slurm: sbatch --export=ALL,DATA=/shared/data/mine,RUN=/shared/runs/mine examples/slurm.sh
# DATA, RUN and HF_HOME have to be on a filesystem that all machines see. Written by its manuals, not run on a cluster.
#SBATCH --job-name=sdft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

: "${DATA:?a dataset folder that all machines see}" "${RUN:?a run folder that all machines see}"
PROFILE=${PROFILE:-recommended-qwen3.5-9b-64k}
RESTARTS=${RESTARTS:-3}
started=${SLURM_RESTART_COUNT:-0}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)

if grep -qs '"status": "finished"' "$RUN/run.json"; then
  echo "$RUN is finished"
  exit 0
fi
# A run that was begun goes on from its newest checkpoint that verifies, on as many GPUs as there are now.
if [ -f "$RUN/run.json" ]; then
  what=(--resume --out "$RUN")
else
  what=("$DATA" --profile "$PROFILE" --backend transformers --out "$RUN")
fi

# One torchrun in each machine; they wait for each other (c10d), then start a process per GPU. Threads: one each.
export OMP_NUM_THREADS=1
code=0
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID-$started" \
  -m sdft_cli train "${what[@]}" || code=$?

# --requeue covers machines that fail and jobs that are pushed out. A run that ends itself (a rank failed, the time is
# up) is put back here, so many times: what fails again and again, as a wrong option, is not worth a queue.
if [ "$code" -ne 0 ] && [ "$started" -lt "$RESTARTS" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
