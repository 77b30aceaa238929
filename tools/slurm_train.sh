#!/usr/bin/env bash
# slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
# From the environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
set -e
source "$(dirname "$0")/_launch.sh"

USAGE='usage: slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]'
[ $# -ge 3 ] || fail "$USAGE"
submit train.py "$@"
