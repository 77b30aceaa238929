#!/usr/bin/env bash
# dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Several machines: the same line on each, with NNODES, NODE_RANK, PORT and MASTER_ADDR set. One machine needs none of
# them: a free port is found.
set -e
source "$(dirname "$0")/_launch.sh"

USAGE='usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]'
[ $# -ge 3 ] || fail "$USAGE"
launch test.py "$1" "$3" "$2" "${@:4}"
