#!/usr/bin/env bash
# HPT (arXiv 2509.04419) with the term balance of its released code: L_RL + λ L_SFT on sums over L_max x 8 ranks.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Published: 52.7, 41.9 with model=qwen2_5_math_1_5b, 18.2 with model=llama3_1_8b (see hpt.sh; the paper's equation and the released
# code balance the two terms differently).
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
published qwen2_5_math_1_5b fusion.sft_loss_coef=0.3
published llama3_1_8b trainer.switch_gate=2 fusion.max_grad_norm=null "${llama_data[@]}"
run_experiment hpt_released openr1_math
