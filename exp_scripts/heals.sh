#!/usr/bin/env bash
# RL heals OOD forgetting in SFT (arXiv 2509.12235), on the general points of arXiv 2501.17161: one fine-tuning run, an RL run from
# each chosen checkpoint, one page.
# Data: generated; faces are worth 10 in training and 11, 12, 13 in the test.
# Published for Llama-3.2-11B and Qwen2.5-7B, on 4 H100: OOD 17.5 % at the peak, 6.9 % at the end, 16.2 % after RL (Llama).
# Settings: fine-tuning with rate 1e-6, constant after 3 % of warm-up, batch 64, AdamW (.9, .98), no decay; PPO with the credit
# of turns (gamma .9, lambda .95), clip .1, rate 1e-6, temperature .2, no KL; five verified turns. Their Mllama has no agent loop
# in verl, so MODEL=llama3_1_8b_instruct stands for it. Checkpoints are every 20 steps; published: every 10 up to 200, then 100.
#
#   exp_scripts/heals.sh                                # Qwen2.5-7B; MODEL=llama3_1_8b_instruct for the other one
#   exp_scripts/heals.sh --cfg job                      # every setting
#   exp_scripts/heals.sh 'starts=[base,peak,500,end]'   # RL from other checkpoints
#
# Stop it with Ctrl-C and start the same command again: finished steps are not repeated, a training goes on at its last checkpoint.
# HARDWARE: a choice of conf/hardware, default node_8gpu with 4 of its GPUs, which hold twice the state of 8, so that half of their
# memory is left to vLLM. PYTHON: interpreter, default python.
# Not run here: needs 4 GPUs of 80 GB, and some terabytes for checkpoints.

set -euo pipefail

case ${1:-} in
    --help | -h)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac

model=${MODEL:-qwen2_5_7b}
case $model in
    llama*) end=1100 ;; # last step of the published fine-tuning
    *) end=800 ;;
esac
recovery=(
    'mode=[vector,direction,values,aligned]'
    'top=[0.1,0.25,1.0]'
    'evaluate=[gp_id,gp_ood]'
    'evaluation={max_prompt_length: 512, max_response_length: 1024, environment: {max_turns: 5}}'
)

# quoted TEXT ...: "TEXT","TEXT", as Hydra reads a list
quoted() {
    local texts
    texts=$(printf '"%s",' "$@")
    echo "${texts%,}"
}

# shellcheck disable=SC2016  # Hydra resolves it, not the shell
exec "${PYTHON:-python}" -m unify_posttrain.healing \
    'folder=${oc.env:UNIFY_HOME,outputs}/heals-'"$model" \
    'seeds=[0]' \
    'kl=[0.0]' \
    'starts=[base,peak,end]' \
    'methods=[ppo,grpo]' \
    timeout_seconds=864000 \
    environment.OMP_NUM_THREADS=8 \
    common.task=general_points \
    common.model="$model" \
    common.hardware="${HARDWARE:-node_8gpu}" \
    +common.trainer.n_gpus_per_node=4 \
    +common.actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    sft.data.train_batch_size=64 \
    sft.data.train_max_samples=-1 \
    sft.actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    sft.actor_rollout_ref.actor.optim.lr=1.0e-6 \
    +sft.actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.03 \
    '+sft.actor_rollout_ref.actor.optim.betas=[0.9,0.98]' \
    +sft.actor_rollout_ref.actor.optim.weight_decay=0.0 \
    sft.trainer.total_training_steps="$end" \
    sft.trainer.save_freq=20 \
    +rl.environment.max_turns=5 \
    rl.data.train_batch_size=64 \
    rl.actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    rl.actor_rollout_ref.actor.optim.lr=1.0e-6 \
    +rl.actor_rollout_ref.rollout.temperature=0.2 \
    rl.actor_rollout_ref.rollout.n=8 \
    rl.trainer.total_training_steps=60 \
    rl.trainer.save_freq=20 \
    "evaluation=[$(quoted likelihood=true 'environment={max_turns: 5}')]" \
    "recovery=[$(quoted "${recovery[@]}")]" \
    'define.methods.ppo=["algorithm=ppo_heals"]' \
    "$@"
