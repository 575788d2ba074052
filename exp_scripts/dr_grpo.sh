#!/usr/bin/env bash
# Dr. GRPO (arXiv 2503.20783): GRPO without the deviation, with a constant length divisor.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: math-verify on the text after the thoughts.
# The RL baseline of LUFFY (arXiv 2504.14945) and ReLIFT (arXiv 2506.07527). They clip the ratio at 0.2: algorithm=dr_grpo_released.
# The default is unclipped, as HPT, LUFFY and ReLIFT themselves. RL alone in a third party's note on ReLIFT: 46.9.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
run_experiment dr_grpo openr1_math data.reward_impl_version=3 "${luffy_validation[@]}"
