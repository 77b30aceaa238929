# Sourced by the dist_*.sh scripts: launch SCRIPT CONFIG PROCESSES [arguments of SCRIPT],
# and by the slurm_*.sh scripts: submit SCRIPT PARTITION JOB_NAME CONFIG [arguments of SCRIPT]
# What torchrun would bury under its own traceback is checked here first.

fail() {
    echo "error: $1" >&2
    exit 2
}

# number NAME VALUE LEAST MOST: whether VALUE is a whole number between the two.
number() {
    [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] && [ "$2" -ge "$3" ] && [ "$2" -le "$4" ] ||
        fail "$1 is a whole number from $3 to $4, got '$2'"
}

launch() {
    local script=$1 config=$2 processes=$3 nodes=${NNODES:-1} node=${NODE_RANK:-0} port=${PORT:-} tools gpus where
    tools=$(dirname "${BASH_SOURCE[0]}")
    [ -f "$config" ] || fail "there is no config $config: give the path of a config file"
    number GPUS "$processes" 1 1024
    number NNODES "$nodes" 1 100000
    number NODE_RANK "$node" 0 $((nodes - 1))
    [ -z "$port" ] || number PORT "$port" 1 65535
    [ "$nodes" -eq 1 ] || [ -n "${MASTER_ADDR:-}" ] ||
        fail "NNODES=$nodes needs MASTER_ADDR: give the address of the machine with NODE_RANK=0"
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    if [ "$gpus" -gt 0 ] && [ "$processes" -gt "$gpus" ]; then
        fail "$processes processes were asked for, and this machine has $gpus GPU(s): ask for at most $gpus, \
or set CUDA_VISIBLE_DEVICES=-1 to run on the CPU"
    fi
    if [ "$nodes" -eq 1 ] && [ -z "$port" ]; then
        where=(--standalone) # torchrun looks for a free port
    else
        port=${port:-29500}
        # The first machine listens there. One that is free now may be taken in a moment, which is rare.
        [ "$node" -ne 0 ] || python -c "import socket; socket.create_server(('', $port))" 2> /dev/null ||
            fail "the port $port cannot be listened at, another run may use it: set PORT to a free one\
$([ "$nodes" -gt 1 ] || echo ', or leave it out')"
        where=(--master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$port")
    fi
    # torchrun ends by other codes than its processes, and dies of SIGUSR1 without asking them to end.
    set -m # else it would not hear of Ctrl-C
    PYTHONPATH="$tools/..:${PYTHONPATH:-}" python -m repl_mm.cli._torchrun \
        --nnodes="$nodes" --node_rank="$node" "${where[@]}" --nproc_per_node="$processes" \
        "$tools/$script" "$config" "${@:4}" --launcher pytorch &
    local torchrun=$! asked=0 code=0
    trap 'asked=143; kill -TERM $torchrun' TERM
    trap 'asked=129; kill -TERM $torchrun' HUP # the terminal is closed
    trap 'asked=138; kill -TERM $torchrun' USR1
    trap 'asked=130; kill -INT $torchrun' INT
    # A signal ends the waiting, not what is waited for.
    while kill -0 $torchrun 2> /dev/null; do
        code=0
        wait $torchrun || code=$?
    done
    exit $((asked ? asked : code))
}

# From the environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
submit() {
    local script=$1 partition=$2 job_name=$3 config=$4 tools
    tools=$(dirname "${BASH_SOURCE[0]}")
    [ -f "$config" ] || fail "there is no config $config: give the path of a config file"
    number GPUS "${GPUS:-8}" 1 100000
    number GPUS_PER_NODE "${GPUS_PER_NODE:-8}" 1 1024
    number CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1 1024
    # shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
    PYTHONPATH="$tools/..:$PYTHONPATH" exec srun \
        --partition="$partition" \
        --job-name="$job_name" \
        --gres="gpu:${GPUS_PER_NODE:-8}" \
        --ntasks="${GPUS:-8}" \
        --ntasks-per-node="${GPUS_PER_NODE:-8}" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        $SRUN_ARGS \
        python -u "$tools/$script" "$config" "${@:5}" --launcher slurm
}
