#!/usr/bin/env bash
# SFT, then GRPO, in one run: the corrected baseline of arXiv 2604.23747.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Published for Qwen2.5-Math-7B: arXiv 2604.23747 finds it 3.8 points ahead of every mixed method it tests; the HPT paper's own
# SFT -> GRPO has 46.5, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6).
# The lengths of the two phases are a choice of conf/algorithm/sft_then_rl.yaml: half of the steps each.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
run_experiment sft_then_rl openr1_math
