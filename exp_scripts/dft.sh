#!/usr/bin/env bash
# DFT (arXiv 2508.05629): fine-tuning weighted by the token's probability; nothing is generated.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); the reward is read by validation alone.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment dft qwen2_5_math_7b openr1_math "$@"
