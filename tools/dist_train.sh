#!/usr/bin/env bash
# dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: the same line on each, with NNODES, NODE_RANK, PORT and MASTER_ADDR set. One machine needs none of
# them: a free port is found.
set -e
source "$(dirname "$0")/_launch.sh"

USAGE='usage: dist_train.sh CONFIG GPUS [arguments of train.py]'
[ $# -ge 2 ] || fail "$USAGE"
launch train.py "$1" "$2" "${@:3}"
