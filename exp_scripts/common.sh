# shellcheck shell=bash
# Sourced by the scripts of published experiments in this folder: what they have in common.
#
#   exp_scripts/hpt.sh --dry-run                                      # the plan, on any machine: no GPU, no data, no weights needed
#   python -m unify_posttrain.prepare task=openr1_math                # the data that the plan names
#   exp_scripts/hpt.sh --doctor                                       # whether this machine can run it (unify_posttrain.doctor)
#   exp_scripts/hpt.sh [override ...]                                 # the first published model
#   exp_scripts/hpt.sh model=qwen2_5_math_1_5b [override ...]         # another one, with the settings published for it
#   exp_scripts/hpt.sh algorithm=hpt_released [override ...]          # the same data and model, the balance of the released code
#
# --help prints a script's header, --dry-run stands for +dry_run=true, --doctor examines the machine instead, everything else is
# handed on. Later overrides win over the script's. Given as overrides (algorithm=, model=, task=, hardware=) or in the environment:
# ALGORITHM               a choice of conf/algorithm, most often the script's own with _released; it gets a folder of its own
# MODEL, HARDWARE         a choice of conf/model, conf/hardware (default node_8gpu)
# TASK                    a choice of conf/task; TASK=custom needs the three below
# TRAIN_FILES, VAL_FILES  parquet files instead of the task's (docs/data.md); several: '[a.parquet,b.parquet]'. The published
#                         runs validate on benchmarks: VAL_FILES='[outputs/data/benchmarks/aime24.parquet,…]'
# REWARD_FILE             module with compute_score(data_source, solution_str, ground_truth, extra_info), not the task's reward
# PYTHON                  interpreter, default python
#
# What a script does not set is in conf/algorithm/NAME.yaml and conf/train.yaml. Several nodes: exp_scripts/slurm/train.sbatch.

set -euo pipefail

arguments=() # of the user, for unify_posttrain.train
program=train
settings=()  # published for MODEL
released=()  # published for MODEL where its numbers depend on the balance: settings of ALGORITHM=NAME_released
models=()    # that settings are published for, the first one is the default

# Prompts of HPT's released runs, which are those of its LUFFY and SRFT runs, too. Rows of their own, hence a folder of their own.
# Qwen: the stored system message is dropped, and the tokenizer's own template brings its default one (to reason step by step and to
# put the answer into a box). No think tag is opened.
# shellcheck disable=SC2016,SC2034  # Hydra resolves it, not the shell; used by the scripts
hpt_prompts_qwen=(
    'prepare.task.folder=${oc.env:UNIFY_HOME,outputs}/data/openr1_math_no_system'
    prepare.task.system=none
    actor_rollout_ref.model.custom_chat_template=null
)
# Llama: plain text without a first token (conf/model/llama3_1_8b.yaml), the question followed by a sentence that asks for a box.
# shellcheck disable=SC2016,SC2034
hpt_prompts_llama=(
    'prepare.task.folder=${oc.env:UNIFY_HOME,outputs}/data/openr1_math_llama'
    prepare.task.system=none
    prepare.task.template=boxed
)

# Validation during training, as the released scripts do it, each on its benchmark files (VAL_FILES).
# shellcheck disable=SC2034
hpt_validation=(
    trainer.test_freq=10
    trainer.val_before_train=true
    actor_rollout_ref.rollout.val_kwargs.do_sample=true
    actor_rollout_ref.rollout.val_kwargs.temperature=0.6
    actor_rollout_ref.rollout.val_kwargs.top_p=0.95
    actor_rollout_ref.rollout.val_kwargs.n=8
)
# shellcheck disable=SC2034
luffy_validation=( # and ReLIFT's
    trainer.test_freq=10
    trainer.val_before_train=false
    actor_rollout_ref.rollout.val_kwargs.do_sample=true
    actor_rollout_ref.rollout.val_kwargs.temperature=0.6
    actor_rollout_ref.rollout.val_kwargs.top_p=1.0
    actor_rollout_ref.rollout.val_kwargs.n=1
)

# read_arguments [argument ...]
read_arguments() {
    local argument dry_run=
    for argument in "$@"; do
        case $argument in
            --help | -h)
                sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
                exit 0
                ;;
            --doctor) program=doctor ;;
            --dry-run | +dry_run=true) dry_run=1 ;;
            algorithm=*) ALGORITHM=${argument#*=} ;;
            model=*) MODEL=${argument#*=} ;;
            task=*) TASK=${argument#*=} ;;
            hardware=*) HARDWARE=${argument#*=} ;;
            *) arguments+=("$argument") ;;
        esac
    done
    [[ -z $dry_run ]] || arguments+=(+dry_run=true)
}

# published MODEL [override ...]: a published run with this model, and what was set for it
published() {
    models+=("$1")
    [[ ${MODEL:-${models[0]}} != "$1" ]] || settings=("${@:2}")
}

# published_released MODEL [override ...]: what of it is another number under ALGORITHM=NAME_released; after its `published`
published_released() {
    [[ ${MODEL:-${models[0]}} != "$1" ]] || released=("${@:2}")
}

# run_experiment ALGORITHM TASK [override ...]: becomes the training process, so that signals reach it
run_experiment() {
    local algorithm=${ALGORITHM:-$1} task=${TASK:-$2} model=${MODEL:-${models[0]}} script=${0##*/} setting given=() data=()
    # Runs of different algorithms and models have folders of their own: hpt, hpt_released, hpt-llama3_1_8b, …
    script=${script%.sh}
    case $algorithm in
        "$1") ;;
        "$1"_released) script=$algorithm${script#"$1"} settings+=(${released[@]+"${released[@]}"}) ;;
        *)
            script+=-$algorithm
            echo "${0##*/}: nothing is published here for algorithm=$algorithm (published: $1, $1_released where it exists)" >&2
            ;;
    esac
    [[ $model == "${models[0]}" ]] || script+=-$model
    [[ $script == "$algorithm" ]] || given+=(trainer.experiment_name="$script")
    case " ${models[*]} " in
        *" $model "*) ;;
        *) echo "${0##*/}: nothing is published here for model=$model (published: ${models[*]}), nothing is set for it" >&2 ;;
    esac
    if [[ $task == custom ]]; then
        : "${TRAIN_FILES:?set TRAIN_FILES to the training parquet file}"
        : "${VAL_FILES:?set VAL_FILES to the validation parquet file}"
        : "${REWARD_FILE:?set REWARD_FILE to the module of your reward function}"
    fi
    for setting in "${@:3}" ${settings[@]+"${settings[@]}"}; do
        case $setting in
            # Of the script's own task: another one has neither.
            prepare.* | data.reward_impl_version=*) [[ $task != "$2" ]] || given+=("$setting") ;;
            *) given+=("$setting") ;;
        esac
    done
    [[ -z ${TRAIN_FILES:-} ]] || data+=(data.train_files="$TRAIN_FILES")
    [[ -z ${VAL_FILES:-} ]] || data+=(data.val_files="$VAL_FILES")
    # Another function has neither the versions of the task's reward nor its settings.
    [[ -z ${REWARD_FILE:-} ]] || data+=(
        reward.custom_reward_function.path="$REWARD_FILE" reward.custom_reward_function.name=compute_score
        ++reward.custom_reward_function.reward_kwargs=null data.reward_impl_version=null
    )
    exec "${PYTHON:-python}" -m "unify_posttrain.$program" \
        algorithm="$algorithm" \
        model="$model" \
        task="$task" \
        hardware="${HARDWARE:-node_8gpu}" \
        ${given[@]+"${given[@]}"} \
        ${arguments[@]+"${arguments[@]}"} \
        ${data[@]+"${data[@]}"}
}

read_arguments "$@"
