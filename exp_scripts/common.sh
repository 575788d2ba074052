# Sourced by the scripts of published experiments in this folder: what they have in common.
#
#   python -m unify_posttrain.prepare task=openr1_math && exp_scripts/hpt.sh [override ...]
#
# A script names the task that its data comes from; write it with unify_posttrain.prepare first. Unset or set:
# TASK                    another choice of conf/task; TASK=custom needs the three below
# TRAIN_FILES, VAL_FILES  parquet files instead of the task's (README, "Data"); several: '[a.parquet,b.parquet]'. The published
#                         runs validate on benchmarks: VAL_FILES='[outputs/data/benchmarks/aime24.parquet,…]'
# REWARD_FILE             module with compute_score(data_source, solution_str, ground_truth, extra_info) instead of the task's reward
# MODEL, HARDWARE         another choice of conf/model, conf/hardware (an override in the arguments would be a second one)
# PYTHON                  interpreter, default python
#
# What a script does not set is in conf/algorithm/NAME.yaml and conf/train.yaml; +dry_run=true shows the plan without starting.

set -euo pipefail

# run_experiment ALGORITHM MODEL TASK [override ...]
run_experiment() {
    local algorithm=$1 model=$2 task=${TASK:-$3}
    shift 3
    local data=()
    if [[ $task == custom ]]; then
        : "${TRAIN_FILES:?set TRAIN_FILES to the training parquet file}" "${VAL_FILES:?set VAL_FILES to the validation parquet file}"
        : "${REWARD_FILE:?set REWARD_FILE to the module of your reward function}"
    fi
    [[ -z ${TRAIN_FILES:-} ]] || data+=(data.train_files="$TRAIN_FILES")
    [[ -z ${VAL_FILES:-} ]] || data+=(data.val_files="$VAL_FILES")
    # Another function has neither the versions of the task's reward nor its settings.
    [[ -z ${REWARD_FILE:-} ]] || data+=(
        reward.custom_reward_function.path="$REWARD_FILE" reward.custom_reward_function.name=compute_score
        ++reward.custom_reward_function.reward_kwargs=null data.reward_impl_version=null
    )
    "${PYTHON:-python}" -m unify_posttrain.train \
        algorithm="$algorithm" \
        model="${MODEL:-$model}" \
        task="$task" \
        hardware="${HARDWARE:-node_8gpu}" \
        "$@" \
        ${data[@]+"${data[@]}"}
}
