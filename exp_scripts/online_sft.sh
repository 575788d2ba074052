#!/usr/bin/env bash
# Online SFT ("Online SFT = RLHF"): sampled responses, likelihood weighted by reward minus a sequence KL.
# Data: DAPO-Math-17k, one row per problem; reward: the last `Answer:` line, +1 or -1.
# Published settings: responses of 3072 tokens, 8 per prompt, learning rate 1e-6 -> 1e-8 in 50000 episodes. The model is a choice
# of this script. For summaries with a reward model: python -m unify_posttrain.train algorithm=online_sft task=tldr
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment online_sft qwen2_5_math_7b dapo_math \
    fusion.online_sft.episodes=50000 \
    "$@"
