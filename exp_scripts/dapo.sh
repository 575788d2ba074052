#!/usr/bin/env bash
# DAPO (arXiv 2503.14476): clip 0.2/0.28, token mean, dynamic sampling, penalty for the last 4096 of 20480 tokens.
# Data: DAPO-Math-17k, one row per problem; reward: the last `Answer:` line. The published model has 32B weights; this one has 7B.
# Published settings (verl's recipe): 512 questions x 16 responses, 16 updates a step, weight decay 0.1, 10 steps of warm-up, groups
# whose accuracies differ.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_7b
run_experiment dapo dapo_math \
    data.train_batch_size=512 \
    data.max_prompt_length=2048 \
    data.max_response_length=20480 \
    algorithm.filter_groups.metric=acc \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.optim.weight_decay=0.1 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=10 \
    actor_rollout_ref.rollout.n=16 \
    actor_rollout_ref.rollout.val_kwargs.do_sample=true \
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
    trainer.test_freq=5
