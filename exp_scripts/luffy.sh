#!/usr/bin/env bash
# LUFFY (arXiv 2504.14945): seven rollouts and a demonstration per group, likelihoods shaped by p/(p + 0.1).
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: math-verify on the text after the thoughts; in the
# runs of the HPT paper (arXiv 2509.04419) the last boxed answer.
# Published, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6):
#   exp_scripts/luffy.sh                                                                      50.1
#     AIME24 29.4, AIME25 23.1, AMC 65.6, MATH-500 87.6, Minerva 37.5, Olympiad 57.2
#     ablation: fusion.clip=ppo 47.8; fusion.clip=ppo fusion.shaping.name=none 44.4
#   exp_scripts/luffy.sh data.reward_impl_version=6            by the HPT paper               49.8
#   exp_scripts/luffy.sh model=qwen2_5_math_1_5b               by the HPT paper               34.7
#   exp_scripts/luffy.sh model=llama3_1_8b                     by the HPT paper               13.2
# algorithm=luffy_released has the balance of the released script. Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

# The 7B run is LUFFY's own, the others are the HPT paper's.
published qwen2_5_math_7b data.reward_impl_version=3 "${luffy_validation[@]}"
published qwen2_5_math_1_5b "${hpt_prompts_qwen[@]}" "${hpt_validation[@]}"
published llama3_1_8b "${hpt_prompts_llama[@]}" "${hpt_validation[@]}"
run_experiment luffy openr1_math
