"""Start-up checks of the critic: there is one exactly if the algorithm learns from it, and its batches can be cut as configured."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from unify_posttrain.algorithms import ALGORITHMS, Algorithm

# What a value loss can be averaged by; the `-norm` aggregations scale a policy's gradient and mean nothing for a regression.
LOSS_MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")


def check_critic(config: DictConfig, algorithm: Algorithm) -> None:
    """Raise on a critic that the algorithm does not have, lacks, or cannot train.

    Raises:
        ValueError: names key, value and remedy.
    """
    estimator, enabled, warmup = str(config.algorithm.adv_estimator), config.critic.enable, config.trainer.critic_warmup
    if not algorithm.needs_critic:
        if estimator == "gae":
            raise ValueError(
                f"algorithm.adv_estimator=gae takes a critic's values and algorithm={algorithm.name} has no critic; "
                f"use grpo, or {_with_critic()}"
            )
        if enabled:
            raise ValueError(
                f"critic.enable=true: algorithm={algorithm.name} would not read it; set it to null, or use {_with_critic()}"
            )
        if warmup:
            raise ValueError(
                f"trainer.critic_warmup={warmup}: algorithm={algorithm.name} has no critic to train meanwhile; set it to 0"
            )
        return
    if estimator != "gae":
        raise ValueError(
            f"algorithm.adv_estimator={estimator} does not read the critic of algorithm={algorithm.name}; set it to gae"
        )
    if enabled is False:
        raise ValueError(f"critic.enable=false: algorithm={algorithm.name} takes its advantages from the critic; set it to null")
    steps = config.trainer.total_training_steps
    if steps is not None and warmup > steps:
        raise ValueError(
            f"trainer.critic_warmup={warmup} exceeds trainer.total_training_steps={steps}: the policy would never be trained; "
            "lower it"
        )
    _check_settings(config)
    _check_batch(config)


def _with_critic() -> str:
    return " or ".join(f"algorithm={name}" for name, cls in ALGORITHMS.items() if cls.needs_critic)


def _check_settings(config: DictConfig) -> None:
    critic = config.critic
    if critic.loss_agg_mode not in LOSS_MODES:
        raise ValueError(f"critic.loss_agg_mode={critic.loss_agg_mode}; choose one of {', '.join(LOSS_MODES)}")
    if critic.shuffle:
        raise ValueError("critic.shuffle=true is not supported (rows are dealt to mini-batches by the trainer); set it to false")
    if config.algorithm.use_pf_ppo:
        raise ValueError(
            "algorithm.use_pf_ppo=true is not supported (it draws other rows than the ones recorded in gate.jsonl); set it to false"
        )
    if critic.strategy not in ("fsdp", "fsdp2"):
        raise ValueError(f"critic.strategy={critic.strategy} is not supported (the FSDP workers are the ones extended); use fsdp2")
    if config.actor_rollout_ref.rollout.name == "hf" and critic.strategy != "fsdp2":
        raise ValueError(f"critic.strategy={critic.strategy} cannot run on CPU; use fsdp2 (hardware=cpu sets it)")
    path = str(critic.model.path)
    if path.startswith(("/", ".", "~")) and not (Path(path).expanduser() / "config.json").is_file():
        raise ValueError(f"critic.model.path={path} holds no config.json: not a model folder of transformers; check the path")


def _check_batch(config: DictConfig) -> None:
    critic, batch, n = config.critic, config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    mini = critic.ppo_mini_batch_size
    if mini < 1 or batch % mini:
        raise ValueError(f"data.train_batch_size={batch} must be a multiple of critic.ppo_mini_batch_size={mini}")
    shards = config.trainer.nnodes * config.trainer.n_gpus_per_node // critic.ulysses_sequence_parallel_size
    if mini * n % shards:
        raise ValueError(
            f"critic.ppo_mini_batch_size={mini} x rollout.n={n} rows cannot be dealt to {shards} ranks; change one of them"
        )
    if critic.use_dynamic_bsz:
        width = config.data.max_prompt_length + config.data.max_response_length
        for key in ("ppo_max_token_len_per_gpu", "forward_max_token_len_per_gpu"):
            if critic[key] < width:
                raise ValueError(
                    f"critic.{key}={critic[key]} is smaller than one row: max_prompt_length + max_response_length = {width}; "
                    "raise it"
                )
        return
    for key in ("ppo_micro_batch_size_per_gpu", "forward_micro_batch_size_per_gpu"):
        if critic[key] is None or critic[key] < 1:
            raise ValueError(f"critic.{key}={critic[key]} is not set; set it, or critic.use_dynamic_bsz=true")
    rows, micro = mini * n // shards, critic.ppo_micro_batch_size_per_gpu
    if rows % micro:
        raise ValueError(
            f"critic.ppo_mini_batch_size={mini} x rollout.n={n} / {shards} ranks = {rows} rows, which "
            f"critic.ppo_micro_batch_size_per_gpu={micro} does not divide; change one of them"
        )
