#!/usr/bin/env bash
# SRFT (arXiv 2506.19767): SFT and RL on demonstrations and rollouts at once, weighted by entropy.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: 1 or 0.
# Published by its authors: 59.5 without AIME25; AIME24 35.3, AMC 74.3, MATH-500 89.8, Minerva 39.7, Olympiad 58.3.
# Run again by the HPT paper: 44.2. The two do not agree; expect neither.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment srft qwen2_5_math_7b openr1_math "$@"
