#!/usr/bin/env bash
# Dr. GRPO (arXiv 2503.20783): GRPO without the deviation, with a constant length divisor.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment dr_grpo qwen2_5_math_7b openr1_math "$@"
