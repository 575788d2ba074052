#!/usr/bin/env bash
# HPT (arXiv 2509.04419) on a model that sees: episodes of VRAG where the model succeeds, worked episodes with images where it does
# not. HPT was published for text. These are its published gate and coefficient, with the episodes of vrag.sh; nothing was published
# for them together.
# Data: questions with worked answers (docs/vrag.md). The small corpus has them; of yours, give trajectories:
#   python -m unify_posttrain.prepare task=vrag model=qwen2_5_vl_7b prepare.task.documents=FOLDER \
#       prepare.task.trajectories=FILE prepare.task.trajectory_images=FOLDER
#   exp_scripts/hpt_vl.sh                                   Qwen2.5-VL-7B
#   exp_scripts/hpt_vl.sh model=qwen2_5_vl_3b               Qwen2.5-VL-3B
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_vl_7b
published qwen2_5_vl_3b
run_experiment hpt vrag \
    data.train_batch_size=32 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
    actor_rollout_ref.rollout.n=8 \
    trainer.total_epochs=1 \
    trainer.total_training_steps=null \
    trainer.test_freq=25
