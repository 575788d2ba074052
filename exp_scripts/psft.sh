#!/usr/bin/env bash
# PSFT (arXiv 2508.17784): fine-tuning under PPO's clip, four updates per batch; nothing is generated.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); the reward is read by validation alone.
# The model is a choice of this script.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
run_experiment psft openr1_math
