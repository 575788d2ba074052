#!/usr/bin/env bash
# UFT (arXiv 2505.16984): rollouts continue from a hint that fades over the first 300 of 500 steps.
# Data: countdown with hints in sentences, from the authors' repository, prompts as they are; reward (uft_reward.py): 0, 0.1 if
# there is an answer, 1 if it is correct.
#   git clone https://github.com/liumy2010/UFT outputs/sources/UFT       or UFT_DATA=its folder data/countdown elsewhere
# Published, average over the paper's tasks, of which countdown is one:
#   exp_scripts/uft.sh                                                   30.93 (RL alone: 32.15)
#   exp_scripts/uft.sh model=qwen2_5_0_5b                                 9.45 (RL alone: 3.25)
#   exp_scripts/uft.sh model=qwen2_5_1_5b                                no number is known here
# The response holds the hint and 1024 new tokens; algorithm=uft_released samples no more than those, as the released code.
# Its variants: fusion.uft.hint_mode=stage, r3 (with fusion.uft.hint_coef=0), none (RL alone).
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_3b
published qwen2_5_0_5b
published qwen2_5_1_5b

# shellcheck disable=SC2016  # Hydra resolves it, not the shell
run_experiment uft convert \
    'prepare.task.folder=${oc.env:UNIFY_HOME,outputs}/data/uft_countdown' \
    'prepare.task.source=${oc.env:UFT_DATA,outputs/sources/UFT/data/countdown}' \
    prepare.task.validation_split=test \
    prepare.task.columns.ground_truth=reward_model.ground_truth \
    prepare.task.columns.hint=hint \
    prepare.task.constants.data_source=countdown \
    'data.val_files=${prepare.task.folder}/validation.parquet' \
    data.max_prompt_length=256 \
    data.max_response_length=2048 \
    "actor_rollout_ref.model.custom_chat_template='{%- for message in messages -%}{{- message.content -}}{%- endfor -%}'" \
    reward.custom_reward_function.path="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/uft_reward.py" \
    trainer.save_freq=100
