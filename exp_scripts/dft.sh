#!/usr/bin/env bash
# DFT (arXiv 2508.05629): fine-tuning weighted by the token's probability; nothing is generated.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); the reward is read by validation alone.
# Data, rate and epochs are those of sft.sh, so that the two can be compared.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
published qwen2_5_math_1_5b
run_experiment dft openr1_math
