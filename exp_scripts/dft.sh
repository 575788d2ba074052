#!/usr/bin/env bash
# DFT (arXiv 2508.05629): fine-tuning weighted by the token's probability; nothing is generated.
# Data: the first 100,000 rows of AI-MO/NuminaMath-CoT (problems with worked solutions); the reward, the last boxed answer, is read
# by validation alone.
# Published settings: batch 256, one epoch, 2048 tokens in all, learning rate 5e-5 with 10 % warm-up and a cosine to 0, betas 0.9
# and 0.95. The prompt is the problem in the tokenizer's own template.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

stock=( # the model as it is, without the context and the think tag of conf/model
    actor_rollout_ref.model.custom_chat_template=null
    actor_rollout_ref.model.override_config.rope_theta=10000.0
    actor_rollout_ref.model.override_config.max_position_embeddings=4096
)
published qwen2_5_math_1_5b "${stock[@]}"
published qwen2_5_math_7b "${stock[@]}"

# A slice of a split cannot be streamed. The reference is the solution: what its last box holds is compared.
# shellcheck disable=SC2016  # Hydra resolves it, not the shell
run_experiment dft convert \
    'prepare.task.folder=${oc.env:UNIFY_HOME,outputs}/data/numina_cot' \
    prepare.task.source=AI-MO/NuminaMath-CoT \
    "prepare.task.split='train[:100000]'" \
    prepare.task.streaming=false \
    prepare.task.deduplicate=false \
    prepare.task.columns.prompt=problem \
    prepare.task.columns.target=solution \
    prepare.task.columns.ground_truth=solution \
    prepare.task.constants.data_source=numina_cot \
    'data.val_files=${oc.env:UNIFY_HOME,outputs}/data/benchmarks/math500.parquet' \
    reward.custom_reward_function.path=pkg://unify_posttrain.rewards.math \
    '++reward.custom_reward_function.reward_kwargs={version:6,workers:4,timeout_seconds:5.0,memory_mb:1024}' \
    data.reward_impl_version=6 \
    data.train_batch_size=256 \
    data.max_prompt_length=512 \
    data.max_response_length=1536 \
    fusion.demo.overlong=truncate \
    actor_rollout_ref.actor.optim.lr_scheduler_type=cosine \
    actor_rollout_ref.actor.optim.betas=[0.9,0.95] \
    trainer.total_epochs=1 \
    trainer.test_freq=10
