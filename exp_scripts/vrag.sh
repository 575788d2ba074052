#!/usr/bin/env bash
# GRPO on VRAG (arXiv 2505.22019): a model that sees searches pages of documents, enlarges parts of them, and answers.
# Data: documents and questions of yours (docs/vrag.md), or the small corpus of twelve pages that is made on the spot:
#   python -m unify_posttrain.prepare task=vrag model=qwen2_5_vl_7b prepare.task.documents=FOLDER prepare.task.questions=FILE
# Pages are ranked in the process (bm25). To ask a server, which this script does not start:
#   python -m unify_posttrain.tasks.vrag.server --corpus outputs/data/vrag/corpus
#   exp_scripts/vrag.sh environment.retriever.kind=http environment.retriever.url=http://HOST:8000
# Published settings are those of the released script: 5 rollouts of 32 questions, KL to the base model, one epoch. Its messages may
# have 2048 tokens, and its context is cut on the left at 8192; here nothing is cut, so an episode has room for all of them.
#   exp_scripts/vrag.sh                                   Qwen2.5-VL-7B
#   exp_scripts/vrag.sh model=qwen2_5_vl_3b               Qwen2.5-VL-3B
# Numbers of its evaluation were published without the script that made them, so none is named here.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_vl_7b
published qwen2_5_vl_3b
# 12332 = 5 messages of 2048 tokens and 4 images of 512, with 11 tokens around each
run_experiment grpo vrag \
    environment.max_tokens_per_turn=2048 \
    data.max_response_length=12332 \
    data.train_batch_size=32 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.use_kl_loss=true \
    actor_rollout_ref.actor.kl_loss_coef=0.01 \
    actor_rollout_ref.actor.kl_loss_type=low_var_kl \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
    actor_rollout_ref.rollout.n=5 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    trainer.total_epochs=1 \
    trainer.total_training_steps=null \
    trainer.test_freq=25
