# Sourced by the scripts of published experiments in this folder: what they have in common.
#
#   TRAIN_FILES=train.parquet VAL_FILES=test.parquet REWARD_FILE=my_reward.py exp_scripts/hpt.sh [override ...]
#
# TRAIN_FILES, VAL_FILES  parquet in the published schema (README, "Data"); several: '[a.parquet,b.parquet]'
# REWARD_FILE             module with compute_score(data_source, solution_str, ground_truth, extra_info)
# MODEL, HARDWARE         another choice of conf/model, conf/hardware (an override in the arguments would be a second one)
# PYTHON                  interpreter, default python
#
# Qwen2.5-Math models have a context of 4096 tokens: raise rope_theta and max_position_embeddings in the model folder first.
#
# What a script does not set is in conf/algorithm/NAME.yaml and conf/train.yaml; +dry_run=true shows the plan without starting.

set -euo pipefail

# run_experiment ALGORITHM MODEL [override ...]
run_experiment() {
    local algorithm=$1 model=$2
    shift 2
    "${PYTHON:-python}" -m unify_posttrain.train \
        algorithm="$algorithm" \
        model="${MODEL:-$model}" \
        task=custom \
        hardware="${HARDWARE:-node_8gpu}" \
        data.train_files="${TRAIN_FILES:?set TRAIN_FILES to the training parquet file}" \
        data.val_files="${VAL_FILES:?set VAL_FILES to the validation parquet file}" \
        reward.custom_reward_function.path="${REWARD_FILE:?set REWARD_FILE to the module of your reward function}" \
        "$@"
}
