#!/usr/bin/env bash
# RL with an SFT loss, the baseline of LUFFY (arXiv 2504.14945): unclipped rollouts, likelihood on the demonstration.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: math-verify on the text after the thoughts.
# algorithm=rl_with_sft_loss_released has the balance of the released script.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
run_experiment rl_with_sft_loss openr1_math data.reward_impl_version=3 "${luffy_validation[@]}"
