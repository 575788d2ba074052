#!/usr/bin/env bash
# GRPO (arXiv 2402.03300), the baseline.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Published in arXiv 2509.04419, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6):
#   exp_scripts/grpo.sh                                                                       43.1
#   exp_scripts/grpo.sh model=qwen2_5_math_1_5b                                               34.0
#   exp_scripts/grpo.sh model=llama3_1_8b                                                      9.6
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b "${hpt_prompts_qwen[@]}"
published qwen2_5_math_1_5b "${hpt_prompts_qwen[@]}"
published llama3_1_8b "${hpt_prompts_llama[@]}"
run_experiment grpo openr1_math
