#!/usr/bin/env bash
# Supervised fine-tuning, the baseline: learning rate 5e-5, batch 64, 3 epochs; nothing is generated.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); the reward is read by validation alone.
# Published in arXiv 2509.04419: 44.5, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6);
# 36.9 for Qwen2.5-Math-1.5B.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment sft qwen2_5_math_7b openr1_math "$@"
