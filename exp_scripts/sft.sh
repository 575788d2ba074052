#!/usr/bin/env bash
# Supervised fine-tuning, the baseline: learning rate 5e-5, batch 64, 3 epochs; nothing is generated.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); the reward is read by validation alone.
# Published with OpenRLHF and its defaults: a cosine to a tenth of the rate, no weight decay, betas 0.9 and 0.95, 16384 tokens.
# Published in arXiv 2509.04419, average over AIME24/25, AMC, MATH-500, Minerva, Olympiad (avg@32 on AIME/AMC, T 0.6):
#   exp_scripts/sft.sh                                                                        44.5
#   exp_scripts/sft.sh model=qwen2_5_math_1_5b                                                36.9
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_math_7b
published qwen2_5_math_1_5b
run_experiment sft openr1_math \
    data.max_response_length=15360 \
    actor_rollout_ref.actor.optim.lr_scheduler_type=cosine \
    actor_rollout_ref.actor.optim.min_lr_ratio=0.1 \
    actor_rollout_ref.actor.optim.weight_decay=0 \
    actor_rollout_ref.actor.optim.betas=[0.9,0.95]
