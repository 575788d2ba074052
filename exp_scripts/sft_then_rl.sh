#!/usr/bin/env bash
# SFT, then GRPO, in one run: the corrected baseline of arXiv 2604.23747.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Published: arXiv 2604.23747 finds it 3.8 points ahead of every mixed method it tests with Qwen2.5-Math-7B; the HPT paper's own
# SFT -> GRPO has 46.5, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6).
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment sft_then_rl qwen2_5_math_7b openr1_math "$@"
