#!/usr/bin/env bash
# GRPO (arXiv 2402.03300), the baseline.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# Published in arXiv 2509.04419: 43.1, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6);
# 34.0 for Qwen2.5-Math-1.5B, 9.6 for Llama-3.1-8B.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment grpo qwen2_5_math_7b openr1_math "$@"
