"""Start-up checks of batch arithmetic: rows can be dealt to ranks and optimizer steps, and cut into micro-batches."""

from __future__ import annotations

from omegaconf import DictConfig

from unify_posttrain.algorithms import Algorithm, Phase
from unify_posttrain.algorithms.schedules import warmup_cosine
from unify_posttrain.experience.rules import RolloutsOnly


def ranks_of(config: DictConfig) -> int:
    """Ranks of the actor."""
    return config.trainer.nnodes * config.trainer.n_gpus_per_node


def check_batch(config: DictConfig, algorithm: Algorithm) -> None:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    batch, mini, ranks = config.data.train_batch_size, actor.ppo_mini_batch_size, ranks_of(config)
    if min(batch, mini, ranks, rollout.n) < 1:
        raise ValueError(
            f"data.train_batch_size={batch}, ppo_mini_batch_size={mini}, rollout.n={rollout.n} and ranks={ranks} must be >= 1"
        )
    if batch % mini:
        raise ValueError(f"data.train_batch_size={batch} must be a multiple of actor_rollout_ref.actor.ppo_mini_batch_size={mini}")
    portions = (rollout.get("custom") or {}).get("portions")
    if rollout.agent.get("agent_loop_manager_class") and (not isinstance(portions, int) or portions < 1):
        raise ValueError(
            f"actor_rollout_ref.rollout.custom.portions={portions} must be a number of parts, at least 1, in which rollouts are "
            "sent back and scored"
        )
    for phase in algorithm.phases:
        _check_phase(config, phase, batch // mini)
    shards = ranks // actor.ulysses_sequence_parallel_size
    if not actor.use_dynamic_bsz and batch * rollout.n % ranks:
        raise ValueError(
            f"data.train_batch_size={batch} x rollout.n={rollout.n} rows cannot be dealt to {ranks} ranks; change one of them, "
            "or set actor_rollout_ref.actor.use_dynamic_bsz=true"
        )
    micro = actor.ppo_micro_batch_size_per_gpu
    if not actor.use_dynamic_bsz:
        if micro is None or micro < 1:
            raise ValueError("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu is not set; set it, or use_dynamic_bsz=true")
        rows = mini * rollout.n // shards
        if rows < 1 or rows % micro:
            raise ValueError(
                f"ppo_mini_batch_size={mini} x rollout.n={rollout.n} / {shards} ranks = {rows} rows, which "
                f"ppo_micro_batch_size_per_gpu={micro} does not divide; change one of them"
            )
    width = config.data.max_prompt_length + config.data.max_response_length
    if actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu < width:
        raise ValueError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} is smaller than one row: "
            f"max_prompt_length + max_response_length = {width}"
        )
    if not 0 < algorithm.fusion.demo.max_length <= config.data.max_response_length:
        raise ValueError(
            f"fusion.demo.max_length={algorithm.fusion.demo.max_length} must lie in 1..data.max_response_length="
            f"{config.data.max_response_length}"
        )


def _check_phase(config: DictConfig, phase: Phase, mini_batches: int) -> None:
    """Batch arithmetic and schedule of a phase; most runs have one."""
    algorithm, actor, n = phase.algorithm, config.actor_rollout_ref.actor, phase.algorithm.fusion.group_size
    batch, steps = config.data.train_batch_size, phase.mini_batches or mini_batches
    if batch % steps:
        raise ValueError(
            f"data.train_batch_size={batch} cannot be cut into the {steps} optimizer steps of algorithm={algorithm.name}"
        )
    if algorithm.one_update and (steps != 1 or actor.ppo_epochs != 1):
        raise ValueError(
            f"algorithm={algorithm.name} holds for rollouts of the current policy: one update per batch, so set actor_rollout_ref."
            f"actor.ppo_mini_batch_size={batch} (it is {batch // steps}) and ppo_epochs=1 (it is {actor.ppo_epochs})"
        )
    schedule, lr = algorithm.fusion.lr_schedule, phase.optim.get("lr") or actor.optim.lr
    if schedule is not None:
        warmup_cosine(0, 1, schedule.start, schedule.warmup_ratio, schedule.min_lr / lr)  # checks its own numbers
    if isinstance(algorithm.experience, RolloutsOnly):
        if n < 2 and algorithm.advantage.compares:
            raise ValueError(f"actor_rollout_ref.rollout.n={n}: a group of one has no baseline, set it to 2 or more")
        shards = ranks_of(config) // actor.ulysses_sequence_parallel_size
        if batch // steps * n % shards:
            raise ValueError(
                f"ppo_mini_batch_size={batch // steps} x rollout.n={n} rows cannot be dealt to {shards} ranks; change one of them"
            )
