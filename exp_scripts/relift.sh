#!/usr/bin/env bash
# ReLIFT (arXiv 2506.07527): GRPO, and a fine-tuning step whenever 128 unsolved questions have gathered.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: math-verify on the text after the thoughts.
# Reported by a third party: 52.6 with MMLU-Pro instead of Minerva; AIME24 28.3, AIME25 22.9, AMC 65.1, MATH-500 87.9,
# MMLU-Pro 53.9, Olympiad 57.3. RL alone: 46.9. The 7B script clips gradients at 0.7.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment relift qwen2_5_math_7b openr1_math \
    data.reward_impl_version=3 \
    actor_rollout_ref.actor.grad_clip=0.7 \
    "$@"
