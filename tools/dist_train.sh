#!/usr/bin/env bash
# dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: the same line on each, with NNODES, NODE_RANK, PORT and MASTER_ADDR set.
set -e
source "$(dirname "$0")/_launch.sh"

USAGE='usage: dist_train.sh CONFIG GPUS [arguments of train.py]'
launch train.py "${1:?$USAGE}" "${2:?$USAGE}" "${@:3}"
