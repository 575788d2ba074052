#!/usr/bin/env bash
# ReLIFT (arXiv 2506.07527): GRPO, and a fine-tuning step whenever 128 unsolved questions have gathered.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: math-verify on the text after the thoughts.
# Reported by a third party for Qwen2.5-Math-7B, with MMLU-Pro instead of Minerva: 52.6 (RL alone: 46.9);
# AIME24 28.3, AIME25 22.9, AMC 65.1, MATH-500 87.9, MMLU-Pro 53.9, Olympiad 57.3.
#   exp_scripts/relift.sh
#   exp_scripts/relift.sh model=qwen2_5_math_1_5b              a script was released, no number is known here
# Three epochs, about 1070 steps. Its scripts clip gradients at 0.7; entropy 1e-4 of the fine-tuning loss is the paper's best,
# theirs have 1e-3. algorithm=relift_released has that and their balance of policy gradient and entropy.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
published qwen2_5_math_1_5b
run_experiment relift openr1_math \
    data.reward_impl_version=3 \
    actor_rollout_ref.actor.grad_clip=0.7 \
    trainer.total_epochs=3 \
    trainer.total_training_steps=null \
    "${luffy_validation[@]}"
