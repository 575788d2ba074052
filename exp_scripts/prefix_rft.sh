#!/usr/bin/env bash
# Prefix-RFT (arXiv 2507.01679): one rollout of a group continues from a part of the demonstration that shrinks to 5 %.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# The model is a choice of this script.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
run_experiment prefix_rft openr1_math
