# shellcheck shell=bash
# Sourced by the jobs of this folder, which set `root`, the checkout: the software that a job runs in, a Ray cluster over its nodes,
# signals, requeueing. Tested against stand-ins of Slurm and Ray (tests/scripts/test_slurm.py); never run on a real cluster.
#
# Nothing in here is to be edited for a site; all of it comes from the environment of `sbatch`. Unset or set:
# UNIFY_MODULES            modules to load: 'cuda/12.8 gcc/13'
# UNIFY_SETUP              a file to source, for anything else (conda activate, export NCCL_SOCKET_IFNAME=ib0, …)
# UNIFY_VENV               folder of a virtual environment; its python and ray are used. Else those of the PATH, or PYTHON
# UNIFY_CONTAINER          image to run in (docs/containers): path.sif or docker://… with apptainer, anything else with pyxis;
#                          UNIFY_CONTAINER_RUNTIME=pyxis | apptainer decides otherwise. docker://… is fetched by every node
# UNIFY_MOUNTS             further mounts, 'from:to,from:to'; the checkout and UNIFY_HOME are mounted anyway
# UNIFY_HOME               where data, models and runs are (default: outputs in the checkout); on a file system that all nodes share
# UNIFY_ROOT               the checkout, if sbatch is not started in it
# UNIFY_GPUS_PER_NODE      GPUs of a node (default: what Slurm says, SLURM_GPUS_ON_NODE)
# UNIFY_HEAD_ADDRESS       IPv4 address of the first node, if its name leads to the wrong network
# UNIFY_RAY_PORT           first of three ports on every node (default: derived from the job's number, 20000 to 32492)
# UNIFY_RAY_TIMEOUT        seconds until all nodes must be up (default 600)
# UNIFY_SKIP_DOCTOR=1      begin although unify_posttrain.doctor would find something red on a node
# UNIFY_MAX_REQUEUES       how often a job may be started again (default 20; Slurm's own restarts count)
# RAY_TMPDIR, NCCL_*, WANDB_API_KEY, HF_TOKEN, …  reach all processes as they are, and nothing here prints them

set -euo pipefail
: "${root:?}"

readonly PREEMPTED=75 # exit code of unify_posttrain.train: saved because it was asked to leave (unify_posttrain.runs.signals)
readonly RAY_STOP_SECONDS=20 # for Ray to leave by itself
readonly PAUSE=0.2 # seconds between two looks at a process
readonly FIRST_PORT=20000 PORT_BLOCK=10 PORT_BLOCKS=1250 # below the ports that Linux and Ray give away at random

driver=   # the process that works ...
ask=USR1  # ... the signal that it is asked to leave by ...
target=   # ... and where that goes: to it alone, or to its process group
steps=()  # srun of the head, srun of the other nodes
stopping= # the signal that this job was sent
signals=0
step_options=() inside=()

say() { printf 'unify: %s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# --- what the job runs in -----------------------------------------------------------------------------------------------------

load_software() {
    local modules
    set +eu # what sites provide is rarely written for these
    if [[ -n ${UNIFY_MODULES:-} ]]; then
        read -ra modules <<<"$UNIFY_MODULES"
        type module >/dev/null 2>&1 || die "UNIFY_MODULES is set, but there is no command 'module'; load them in UNIFY_SETUP"
        module load "${modules[@]}" || die "module load ${modules[*]} failed"
    fi
    if [[ -n ${UNIFY_SETUP:-} ]]; then
        [[ -f $UNIFY_SETUP ]] || die "UNIFY_SETUP=$UNIFY_SETUP does not exist"
        # shellcheck disable=SC1090  # the site's
        source "$UNIFY_SETUP" || die "UNIFY_SETUP=$UNIFY_SETUP failed"
    fi
    set -eu
    ray=ray PYTHON=${PYTHON:-python}
    if [[ -n ${UNIFY_VENV:-} ]]; then
        [[ -n ${UNIFY_CONTAINER:-} || -x $UNIFY_VENV/bin/python ]] || die "UNIFY_VENV=$UNIFY_VENV holds no bin/python"
        ray=$UNIFY_VENV/bin/ray PYTHON=$UNIFY_VENV/bin/python
        export PATH=$UNIFY_VENV/bin:$PATH VIRTUAL_ENV=$UNIFY_VENV
    fi
    export PYTHON PYTHONUNBUFFERED=1
    choose_container
}

choose_container() {
    [[ -n ${UNIFY_CONTAINER:-} ]] || return 0
    local runtime=${UNIFY_CONTAINER_RUNTIME:-pyxis} mounts=$root:$root
    if [[ -z ${UNIFY_CONTAINER_RUNTIME:-} && ($UNIFY_CONTAINER == *.sif || $UNIFY_CONTAINER == *://*) ]]; then
        runtime=apptainer
    fi
    [[ ${UNIFY_HOME:-} != /* ]] || mounts+=,$UNIFY_HOME:$UNIFY_HOME
    [[ -z ${UNIFY_MOUNTS:-} ]] || mounts+=,$UNIFY_MOUNTS
    case $runtime in
        pyxis) step_options=(--container-image="$UNIFY_CONTAINER" --container-mounts="$mounts" --container-workdir="$root") ;;
        apptainer)
            type apptainer >/dev/null 2>&1 || die "UNIFY_CONTAINER=$UNIFY_CONTAINER needs apptainer; load it in UNIFY_MODULES"
            inside=(apptainer exec --nv --bind "$mounts" --pwd "$root" "$UNIFY_CONTAINER")
            ;;
        *) die "UNIFY_CONTAINER_RUNTIME=$runtime is unknown; choose pyxis or apptainer" ;;
    esac
}

# --- where it runs ------------------------------------------------------------------------------------------------------------

read_allocation() {
    [[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_JOB_NODELIST:-} ]] || die "this is no Slurm job; start it with sbatch"
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    [[ ${#nodes[@]} -gt 0 ]] || die "scontrol does not know the nodes of SLURM_JOB_NODELIST=$SLURM_JOB_NODELIST"
    gpus=${UNIFY_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
    [[ $gpus =~ ^[1-9][0-9]*$ ]] || die "no GPUs in this job (${gpus:-SLURM_GPUS_ON_NODE is not set}); ask for --gpus-per-node=8"
    cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-$(nproc)}}
}

# address_of NODE: IPv4 address that other nodes reach. Many hosts give their own name a loopback address.
address_of() {
    local address
    address=$(getent ahostsv4 "$1" | awk '$1 !~ /^127\./ {print $1; exit}') || true
    [[ -n $address ]] || address=$(hostname -I 2>/dev/null | awk '{print $1}') || true
    printf '%s' "$address"
}

# --- before it runs -----------------------------------------------------------------------------------------------------------

# check_nodes command …: the doctor on every node, told what the command will ask of it. Ends the job if something is red.
check_nodes() {
    [[ ${UNIFY_SKIP_DOCTOR:-} != 1 ]] || return 0
    local checkup=(python -m unify_posttrain.doctor) names argument
    if [[ ${1##*/} == python* && ${2:-} == -m && ${3:-} == unify_posttrain.train ]]; then
        checkup=("$1" -m unify_posttrain.doctor "${@:4}")
    elif [[ ${1##*/} == unify-train ]]; then
        checkup+=("${@:2}")
    elif [[ -f $1 ]] && grep -q 'common\.sh' "$1"; then
        checkup=("$1" --doctor "${@:2}")
    fi # another script may do anything with an option: the machine alone
    for argument in "${@:2}"; do
        case $argument in
            -m) ;;
            -*) checkup=(python -m unify_posttrain.doctor) ;; # an option of Hydra's
        esac
    done
    checkup+=(--before-ray)
    [[ ${checkup[0]} != python ]] || checkup[0]=$PYTHON
    # In the foreground: it ends within 20 seconds, and a signal waits for that.
    if [[ ${#nodes[@]} -eq 1 ]]; then
        (on_head "${checkup[@]}") && return 0
    else
        names=$(
            IFS=,
            echo "${nodes[*]}"
        )
        (
            export SLURM_LABELIO=1 # srun says which node a line is of
            on "${#nodes[@]}" "$names" "${checkup[@]}"
        ) && return 0
    fi
    [[ -n $stopping ]] || die "the doctor did not pass (above): correct what is red, or set UNIFY_SKIP_DOCTOR=1 to begin anyway"
}

# --- the Ray cluster ----------------------------------------------------------------------------------------------------------

# on COUNT NODE,NODE,… command …: one task on each; becomes srun, so use it with &. --overlap: without it a step keeps its CPUs
# and GPUs to itself, and the next one waits for ever.
on() {
    exec srun --overlap --nodes="$1" --ntasks="$1" --ntasks-per-node=1 --nodelist="$2" --cpus-per-task="$cpus" \
        --kill-on-bad-exit=1 ${step_options[@]+"${step_options[@]}"} ${inside[@]+"${inside[@]}"} "${@:3}"
}

start_cluster() {
    unset RAY_ADDRESS # of another cluster
    local port=${UNIFY_RAY_PORT:-$((FIRST_PORT + SLURM_JOB_ID % PORT_BLOCKS * PORT_BLOCK))} address others
    address=${UNIFY_HEAD_ADDRESS:-$(address_of "${nodes[0]}")}
    [[ -n $address ]] || die "${nodes[0]} has no IPv4 address; set UNIFY_HEAD_ADDRESS"
    say "job $SLURM_JOB_ID: ${#nodes[@]} node(s) (${nodes[*]}) of $gpus GPUs and $cpus CPUs, Ray at $address:$port"
    # Whoever reaches the port of a Ray cluster can run code in it. A secret of this job, if the user has none.
    if [[ -z ${RAY_AUTH_MODE:-} ]]; then
        RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
        export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    fi
    export RAY_task_events_max_num_task_in_gcs=${RAY_task_events_max_num_task_in_gcs:-10000} # as trainer/task_runner.py does
    local common=(--num-cpus="$cpus" --num-gpus="$gpus" --dashboard-agent-listen-port=$((port + 2)) --disable-usage-stats --block)
    on 1 "${nodes[0]}" "$ray" start --head --node-ip-address="$address" --port="$port" \
        --ray-client-server-port=$((port + 1)) --include-dashboard=false "${common[@]}" &
    steps+=($!)
    local server=$address:$port
    wait_for_ray "$server" "${nodes[0]}"
    if [[ ${#nodes[@]} -gt 1 && -z $stopping ]]; then
        others=$(
            IFS=,
            echo "${nodes[*]:1}"
        )
        on $((${#nodes[@]} - 1)) "$others" "$ray" start --address="$server" "${common[@]}" &
        steps+=($!)
        wait_for_ray "$server" "${nodes[@]}"
    fi
    export RAY_ADDRESS=$server # read by ray.init in unify_posttrain.train
}

# wait_for_ray ADDRESS NODE …: until these are up. Ends the job if Ray ends somewhere or the time is over.
wait_for_ray() {
    local step waiter code=0
    on_head env RAY_ADDRESS="$1" "$PYTHON" exp_scripts/slurm/wait_for_ray.py \
        --gpus "$gpus" --timeout "${UNIFY_RAY_TIMEOUT:-600}" "${@:2}" &
    waiter=$!
    while kill -0 "$waiter" 2>/dev/null; do
        for step in "${steps[@]}"; do
            if ! kill -0 "$step" 2>/dev/null; then
                kill "$waiter" 2>/dev/null || true
                wait "$step" || code=$?
                die "Ray ended on a node while the cluster was starting (code $code); its messages are above"
            fi
        done
        if [[ -n $stopping ]]; then
            kill "$waiter" 2>/dev/null || true
            return 0
        fi
        sleep "$PAUSE"
    done
    wait "$waiter" || die "the Ray cluster did not come up"
}

stop_cluster() {
    local step looks=$((RAY_STOP_SECONDS * 5))
    kill "${steps[@]}" 2>/dev/null || true # srun hands the signal on to `ray start --block`; `ray stop` would stop other jobs' too
    for step in ${steps[@]+"${steps[@]}"}; do
        while kill -0 "$step" 2>/dev/null && ((looks-- > 0)); do sleep "$PAUSE"; done
        kill -KILL "$step" 2>/dev/null || true
    done
    steps=()
}

# --- the work -----------------------------------------------------------------------------------------------------------------

# on_head command …: on the first node, where this script runs. Becomes the command, which thereby gets the signals: use it with &
# or in $( ).
on_head() {
    [[ $1 != python ]] || set -- "$PYTHON" "${@:2}"
    if [[ ${#step_options[@]} -gt 0 ]]; then # a container of pyxis begins at a step; srun hands signals and exit code on
        exec srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" --cpus-per-task="$cpus" "${step_options[@]}" "$@"
    fi
    exec ${inside[@]+"${inside[@]}"} "$@"
}

# On USR1 (sent by --signal=B:USR1@seconds, before the time limit) and TERM: asks the work to leave, once. A second signal would end
# unify_posttrain.train at once.
on_signal() {
    signals=$((signals + 1))
    [[ -z $stopping ]] || return 0
    stopping=$1
    if [[ -n $driver ]]; then
        say "SIG$1: asking the run to leave"
        kill -s "$ask" -- "$target" 2>/dev/null || true
    else
        say "SIG$1 before the run began"
    fi
}

# run_driver command …: sets `code` to how it ends
run_driver() {
    local before
    code=$PREEMPTED
    [[ -z $stopping ]] || return 0
    [[ $ask == USR1 ]] || set -m # a process group of its own
    on_head "$@" &
    driver=$! target=$!
    [[ $ask == USR1 ]] || target=-$driver
    set +m
    [[ -z $stopping ]] || kill -s "$ask" -- "$target" 2>/dev/null || true # it came between the last lines
    while
        before=$signals code=0
        wait "$driver" || code=$?
        [[ $signals -ne $before ]] # a signal ended `wait`, not the driver; asked again, bash knows how that ended
    do :; done
    driver=
    # Asked before it could listen (importing takes a while): there was nothing to save.
    [[ -z $stopping || $code -ne $((128 + $(kill -l USR1))) ]] || code=$PREEMPTED
}

# requeue: puts the job back into the queue, unless it was there too often or somebody cancelled it
requeue() {
    local restarts=${SLURM_RESTART_COUNT:-0} limit=${UNIFY_MAX_REQUEUES:-20} state again
    again="the same sbatch command goes on from the last checkpoint"
    state=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null) || state=
    if [[ $state =~ JobState=(CANCELLED|COMPLETING) ]]; then
        say "not started again: the job was cancelled; $again"
    elif ((restarts >= limit)); then
        say "not started again: UNIFY_MAX_REQUEUES=$limit is reached; $again"
    else
        say "back into the queue (restart $((restarts + 1)) of at most $limit)"
        scontrol requeue "$SLURM_JOB_ID" || say "scontrol requeue failed; $again"
    fi
}

clean_up() {
    trap '' USR1 TERM # requeueing ends this script by a signal, which must not be taken for another
    [[ -z $driver ]] || kill -- "$target" 2>/dev/null || true
    [[ ${#steps[@]} -eq 0 ]] || stop_cluster
}

# finish: clean up, requeue if the work asks for it, exit with its code
finish() {
    clean_up
    trap - EXIT
    [[ $code -ne $PREEMPTED ]] || requeue
    exit "$code"
}

# --- jobs ---------------------------------------------------------------------------------------------------------------------

# train command …: a training command on a Ray cluster over all nodes of the job, told how many nodes and GPUs there are
train() {
    local command=("$@") argument derived
    begin "$@"
    case "$*" in
        *.sh | *.sh\ * | *unify_posttrain.train | *unify_posttrain.train\ * | unify-train*) ;;
        *) die "'$1 …' trains nothing: give an experiment script or python -m unify_posttrain.train (the rest: evaluate.sbatch)" ;;
    esac
    read_allocation
    [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || choose_point
    # ray.init takes no counts where a cluster runs already.
    for derived in trainer.nnodes="${#nodes[@]}" trainer.n_gpus_per_node="$gpus" \
        ray_kwargs.ray_init.num_cpus=null ++ray_kwargs.ray_init.num_gpus=null; do
        for argument in "$@"; do
            [[ ${argument%%=*} != "${derived%%=*}" ]] || continue 2 # the user knows better
        done
        command+=("$derived")
    done
    check_nodes "${command[@]}"
    start_cluster
    run_driver "${command[@]}"
    finish
}

# choose_point: of a command with several values (key=a,b) that of this task of a job array, with a run folder of its own
choose_point() {
    local lines
    lines=$(on_head "$PYTHON" exp_scripts/slurm/sweep_point.py "$SLURM_ARRAY_TASK_ID" "${command[@]}") ||
        die "task $SLURM_ARRAY_TASK_ID of the job array has no run"
    mapfile -t command <<<"$lines"
}

# work command …: any command on the first node, without Ray. Asked to leave it is ended (evaluation keeps every sample), and if it
# had not finished the job is queued again.
work() {
    ask=TERM
    begin "$@"
    [[ -n ${SLURM_JOB_ID:-} ]] || die "this is no Slurm job; start it with sbatch"
    nodes=("${SLURMD_NODENAME:-$(hostname)}") cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-$(nproc)}}
    run_driver "$@"
    [[ -z $stopping || $code -eq 0 ]] || code=$PREEMPTED
    finish
}

begin() {
    [[ $# -gt 0 ]] || die "nothing to run: sbatch exp_scripts/slurm/train.sbatch exp_scripts/hpt.sh [override ...]"
    cd "$root"
    trap 'on_signal USR1' USR1
    trap 'on_signal TERM' TERM
    trap clean_up EXIT
    load_software
}
