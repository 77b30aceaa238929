#!/usr/bin/env bash
# dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Several machines: the same line on each, with NNODES, NODE_RANK, PORT and MASTER_ADDR set.
set -e
source "$(dirname "$0")/_launch.sh"

USAGE='usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]'
launch test.py "${1:?$USAGE}" "${3:?$USAGE}" "${2:?$USAGE}" "${@:4}"
