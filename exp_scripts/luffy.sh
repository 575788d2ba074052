#!/usr/bin/env bash
# LUFFY (arXiv 2504.14945): seven rollouts and a demonstration per group, likelihoods shaped by p/(p + 0.1).
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: math-verify on the text after the thoughts.
# Published: 50.1, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6);
# AIME24 29.4, AIME25 23.1, AMC 65.6, MATH-500 87.6, Minerva 37.5, Olympiad 57.2. Run again by the HPT paper: 49.8.
# Ablation: without shaping and clipped 44.4; shaped 47.8; shaped and unclipped, which is this, 50.1.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment luffy qwen2_5_math_7b openr1_math \
    data.reward_impl_version=3 \
    "$@"
