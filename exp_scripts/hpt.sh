#!/usr/bin/env bash
# HPT (arXiv 2509.04419): rollouts where the model succeeds, a demonstration where it does not.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer. Prompts and validation are those of
# the released code (common.sh). algorithm=hpt_released has its balance of the terms: L_RL + λ L_SFT, sums over L_max x 8 ranks.
# Published, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6):
#   exp_scripts/hpt.sh                                                                        52.7
#     AIME24 33.0, AIME25 21.9, AMC 69.4, MATH-500 89.2, Minerva 46.0, Olympiad 56.9
#   exp_scripts/hpt.sh model=qwen2_5_math_1_5b                                                41.9
#     trainer.switch_gate=1: 38.7; trainer.switch_gate=2: 39.0; trainer.switch_gate=-1 trainer.switch_gate_off=0: 38.1
#   exp_scripts/hpt.sh model=llama3_1_8b                                                      18.2
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b "${hpt_prompts_qwen[@]}"
published qwen2_5_math_1_5b fusion.sft_loss_coef=0.3 "${hpt_prompts_qwen[@]}"
published_released qwen2_5_math_1_5b fusion.sft_loss_coef=1.2 # 0.3 x M, conf/algorithm/hpt_released.yaml
published llama3_1_8b trainer.switch_gate=2 fusion.max_grad_norm=null "${hpt_prompts_llama[@]}"
run_experiment hpt openr1_math "${hpt_validation[@]}"
