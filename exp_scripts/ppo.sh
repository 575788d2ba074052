#!/usr/bin/env bash
# PPO with a critic (arXiv 1707.06347).
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# One rollout per prompt is enough: actor_rollout_ref.rollout.n=1.
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment ppo qwen2_5_math_7b openr1_math "$@"
