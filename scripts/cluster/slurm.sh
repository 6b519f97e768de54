#!/bin/bash
# A batch of requests as an array of jobs: sbatch --array=0-7 scripts/cluster/slurm.sh model.gguf questions.jsonl answers/
# Each job answers its part of the lines into a file of its own. A job that ended early goes on when the same is
# submitted again: lines that have answers are left out.
#SBATCH --job-name=wayinfer
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=B:INT@60
#SBATCH --requeue
set -euo pipefail

model=$1 questions=$2 answers=$3
parts=${SLURM_ARRAY_TASK_COUNT:?run as an array}
part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))
mkdir -p "$answers"
mine=$answers/questions-$part-of-$parts.jsonl
awk -v part="$part" -v parts="$parts" 'NR % parts == part' "$questions" >"$mine"

# The interrupt that comes a minute before the time is over keeps what is answered, and the job is queued once more.
batch=
trap '[ -z "$batch" ] || { kill -INT "$batch"; wait "$batch" || true; }; scontrol requeue "$SLURM_JOB_ID"; exit' INT
set -m # Without it, what runs beside does not hear interrupts.
wayinfer batch "$mine" "$answers/answers-$part-of-$parts.jsonl" -m "$model" &
batch=$!
wait "$batch"
