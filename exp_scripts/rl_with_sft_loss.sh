#!/usr/bin/env bash
# RL with an SFT loss, the baseline of LUFFY (arXiv 2504.14945): PPO's clip on rollouts, likelihood on the demonstration.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: math-verify on the text after the thoughts.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment rl_with_sft_loss qwen2_5_math_7b openr1_math "$@"
