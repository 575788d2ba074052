#!/usr/bin/env bash
# Online SFT ("Online SFT = RLHF") on mathematics: sampled responses, likelihood weighted by reward minus a sequence KL.
# Data: DAPO-Math-17k, one row per problem; reward: the last `Answer:` line, +1 or -1.
# Published settings: responses of 3072 tokens, 8 per prompt, learning rate 1e-6 -> 1e-8 in 50000 episodes. The model is a choice
# of this script. Summaries with a reward model: online_sft_tldr.sh.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
run_experiment online_sft dapo_math fusion.online_sft.episodes=50000
