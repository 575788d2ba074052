#!/usr/bin/env bash
# UFT (arXiv 2505.16984): rollouts continue from a hint that fades over the first 300 of 500 steps.
# Data: countdown with the column `hint`, a list of sentences; reward 0, 0.1 if it can be parsed, 1 if correct.
# Published: 30.93 for Qwen2.5-3B (RL alone: 32.15), average over the paper's tasks.
# Others:    exp_scripts/uft.sh actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B       published 9.45 (RL alone: 3.25)
# Not run here: needs 8 GPUs. What to set: common.sh.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_experiment uft qwen2_5_7b custom \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-3B \
    "$@"
