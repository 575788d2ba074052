#!/usr/bin/env bash
# HPT (arXiv 2509.04419) with the term balance of its released code: L_RL + λ L_SFT on sums over L_max x 8 ranks.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Published: 52.7 (see hpt.sh; the paper's equation and the released code balance the two terms differently).
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment hpt_released qwen2_5_math_7b openr1_math "$@"
