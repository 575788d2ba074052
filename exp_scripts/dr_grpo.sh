#!/usr/bin/env bash
# Dr. GRPO (arXiv 2503.20783): GRPO without the deviation, with a constant length divisor.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# The model is a choice of this script.
# Without clipping, as the HPT and LUFFY papers run it; the paper's own: fusion.clip=ppo.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
run_experiment dr_grpo openr1_math
