#!/usr/bin/env bash
# HPT (arXiv 2509.04419): rollouts where the model succeeds, a demonstration where it does not.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Published: 52.7, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6);
# AIME24 33.0, AIME25 21.9, AMC 69.4, MATH-500 89.2, Minerva 46.0, Olympiad 56.9.
# Others:    MODEL=qwen2_5_math_1_5b exp_scripts/hpt.sh fusion.sft_loss_coef=0.3     published 41.9
#            MODEL=llama3_1_8b exp_scripts/hpt.sh trainer.switch_gate=2              published 18.2
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment hpt qwen2_5_math_7b openr1_math "$@"
