#!/usr/bin/env bash
# PPO with a critic (arXiv 1707.06347).
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# The model is a choice of this script.
# One rollout per prompt is enough: actor_rollout_ref.rollout.n=1.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
run_experiment ppo openr1_math
