#!/usr/bin/env bash
# slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
# From the environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
set -e
source "$(dirname "$0")/_launch.sh"

USAGE='usage: slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]'
[ $# -ge 3 ] || fail "$USAGE"
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
[ -f "$CONFIG" ] || fail "there is no config $CONFIG: give the path of a config file"
number GPUS "${GPUS:-8}" 1 100000
number GPUS_PER_NODE "${GPUS_PER_NODE:-8}" 1 1024
number CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1 1024
TOOLS=$(dirname "$0")

# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
PYTHONPATH="$TOOLS/..:$PYTHONPATH" exec srun \
    --partition="$PARTITION" \
    --job-name="$JOB_NAME" \
    --gres="gpu:${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    $SRUN_ARGS \
    python -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:4}"
