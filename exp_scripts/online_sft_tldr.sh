#!/usr/bin/env bash
# Online SFT ("Online SFT = RLHF") on summaries, judged by a reward model: Pythia-1B after fine-tuning, 4 summaries per post.
# Data: trl-internal-testing/tldr-preference-sft-trl-style, prompts as they are; reward: the raw logit of a 1B classifier.
# Published settings: prompts of 512 tokens, responses of 128, 16 prompts a step, learning rate 3e-6 -> 1e-7 in 30000 episodes
# (1875 steps). The published sampling at top_p 0.9 is biased; this is 1.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published pythia_1b
run_experiment online_sft tldr \
    data.train_batch_size=16 \
    actor_rollout_ref.rollout.n=4 \
    actor_rollout_ref.actor.optim.lr=3e-6 \
    fusion.lr_schedule.min_lr=1e-7 \
    fusion.online_sft.episodes=30000
