#!/usr/bin/env bash
# PSFT (arXiv 2508.17784): fine-tuning under PPO's clip, four updates per batch; nothing is generated.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); the reward is read by validation alone.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment psft qwen2_5_math_7b openr1_math "$@"
