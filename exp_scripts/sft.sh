#!/usr/bin/env bash
# Supervised fine-tuning, the baseline: learning rate 5e-5, batch 64, 3 epochs; nothing is generated.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); the reward is read by validation alone.
# Published in arXiv 2509.04419, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6):
#   exp_scripts/sft.sh                                                                        44.5
#   exp_scripts/sft.sh model=qwen2_5_math_1_5b                                                36.9
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
published qwen2_5_math_1_5b
run_experiment sft openr1_math
