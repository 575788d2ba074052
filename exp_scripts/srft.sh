#!/usr/bin/env bash
# SRFT (arXiv 2506.19767): SFT and RL on demonstrations and rollouts at once, weighted by entropy.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Published by its authors for Qwen2.5-Math-7B: 59.5 without AIME25; AIME24 35.3, AMC 74.3, MATH-500 89.8, Minerva 39.7,
# Olympiad 58.3. Run again by the HPT paper (arXiv 2509.04419): 44.2. The two do not agree; expect neither.
# The scripts leave the deviation out of the advantage, the paper does not. algorithm=srft_released is what the HPT paper ran.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b "${hpt_prompts_qwen[@]}"
run_experiment srft openr1_math "${hpt_validation[@]}"
