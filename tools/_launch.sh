# Sourced by the dist_*.sh scripts: launch SCRIPT CONFIG PROCESSES [arguments of SCRIPT]
# What torchrun would bury under its own traceback is checked here first.

fail() {
    echo "error: $1" >&2
    exit 2
}

launch() {
    local script=$1 config=$2 processes=$3 tools gpus
    tools=$(dirname "${BASH_SOURCE[0]}")
    [ -f "$config" ] || fail "there is no config $config: give the path of a config file"
    [[ $processes =~ ^[1-9][0-9]*$ ]] || fail "GPUS is a whole number of at least 1, got '$processes'"
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    if [ "$gpus" -gt 0 ] && [ "$processes" -gt "$gpus" ]; then
        fail "$processes processes were asked for, and this machine has $gpus GPU(s): ask for at most $gpus, \
or set CUDA_VISIBLE_DEVICES=-1 to run on the CPU"
    fi
    # torchrun ends by other codes than its processes, and dies of SIGUSR1 without asking them to end.
    set -m # else it would not hear of Ctrl-C
    PYTHONPATH="$tools/..:${PYTHONPATH:-}" torchrun \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$processes" \
        "$tools/$script" "$config" "${@:4}" --launcher pytorch &
    local torchrun=$! asked=0 code=0
    trap 'asked=143; kill -TERM $torchrun' TERM
    trap 'asked=138; kill -TERM $torchrun' USR1
    trap 'asked=130; kill -INT $torchrun' INT
    # A signal ends the waiting, not what is waited for.
    while kill -0 $torchrun 2> /dev/null; do
        code=0
        wait $torchrun || code=$?
    done
    exit $((asked ? asked : code))
}
