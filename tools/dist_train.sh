#!/usr/bin/env bash
# dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: the same line on each, with NNODES, NODE_RANK and MASTER_ADDR set.
set -e

USAGE='usage: dist_train.sh CONFIG GPUS [arguments of train.py]'
CONFIG=${1:?$USAGE}
GPUS=${2:?$USAGE}
TOOLS=$(dirname "$0")

PYTHONPATH="$TOOLS/..:$PYTHONPATH" exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
