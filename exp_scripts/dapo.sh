#!/usr/bin/env bash
# DAPO (arXiv 2503.14476): clip 0.2/0.28, token mean, dynamic sampling, penalty for the last 4096 of 20480 tokens.
# Data: DAPO-Math-17k, one row per problem; reward: the last `Answer:` line. The published model has 32B weights; this one has 7B.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_7b
run_experiment dapo dapo_math data.max_response_length=20480
