"""Start-up checks of memory: the buffer for weights on their way to the engine holds the largest, a rank's parts fit together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from omegaconf import DictConfig

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.shapes import MIB
from unify_posttrain.startup.memory import MOMENTS, RankPlan, parts_of, totals
from unify_posttrain.startup.memory_plan import actor_shape, rank_plan, width_of

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
BUCKET = f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes"
NAMES = {
    "update": "the update",
    "critic": "the critic's update",
    "generation": "generation",
    "scoring": "scoring by the reward model",
}
CHUNK = 1024  # tokens, to be named where none are set
MOST_RANKS = 64  # times the configured ones, as far as the search for a fitting number goes
Change = tuple[str, RankPlan]


def check_memory(config: DictConfig, algorithm: Algorithm, picture_tokens: int | None = None) -> None:
    """Raise on what would end minutes later, on the accelerator. Says nothing where model or accelerator are not known.

    Args:
        picture_tokens: see :func:`~unify_posttrain.startup.memory_plan.rank_plan`.

    Raises:
        ValueError: names key, value and remedy.
    """
    check_bucket(config)
    plan = rank_plan(config, algorithm, picture_tokens)
    if plan is None or plan.accelerator is None:
        return
    _check_engine(plan, config)
    _check_fit(plan, config)


def check_bucket(config: DictConfig) -> None:
    """verl sends a tensor whole (`BucketedWeightSender`), and its own error names `rollout.update_weights_bucket_megabytes`, which
    is no key. SGLang takes tensors of any size.

    Raises:
        ValueError: the buffer is too small.
    """
    rollout, shape = config.actor_rollout_ref.rollout, actor_shape(config)
    if rollout.name != "vllm" or shape is None:
        return
    width = width_of(config.actor_rollout_ref.actor.fsdp_config.get("model_dtype"))
    largest, bucket = shape.largest * width, rollout.checkpoint_engine.update_weights_bucket_megabytes
    if largest > bucket * MIB:
        raise ValueError(
            f"{BUCKET}={bucket} cannot hold the largest weight of "
            f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}: {shape.largest // shape.hidden} x {shape.hidden} "
            f"numbers of {width} bytes; set it to {-(-largest // MIB)} or more"
        )


def _check_engine(plan: RankPlan, config: DictConfig) -> None:
    """What vLLM itself says after having loaded: no memory is left for its cache."""
    engine = plan.engine
    if engine.share is None:
        return
    share = engine.share * plan.accelerator.memory
    if engine.weights > share:
        raise ValueError(
            f"{ROLLOUT}.gpu_memory_utilization={engine.share} of {plan.accelerator.name} is {_gb(share)}, less than the weights of "
            f"{_gb(engine.weights)} that the engine holds; raise it, or {ROLLOUT}.tensor_model_parallel_size="
            f"{config.actor_rollout_ref.rollout.tensor_model_parallel_size}"
        )


def _check_fit(plan: RankPlan, config: DictConfig) -> None:
    memory, needed = plan.accelerator.memory, totals(parts_of(plan))
    moment = max(MOMENTS, key=lambda each: needed[each])
    if needed[moment] <= memory:
        return
    largest = max(parts_of(plan), key=lambda part: getattr(part, moment))
    helping = sorted(_helping(plan, config, moment), key=lambda each: -each[0])
    remedies = "; ".join(f"{text} ({_gb(freed)} less{', enough' if enough else ''})" for freed, enough, text in helping)
    raise ValueError(
        f"{NAMES[moment]} needs at least {_gb(needed[moment])} on every rank and accelerator={plan.accelerator.name} has "
        f"{_gb(memory)} (accelerator.gib={config.accelerator.gib}); the largest part is {largest.name}, "
        f"{_gb(getattr(largest, moment))}. What helps: {remedies or 'a smaller model'}. "
        "+dry_run=true accelerator=null prints all parts"
    )


def _helping(plan: RankPlan, config: DictConfig, moment: str) -> Iterator[tuple[float, bool, str]]:
    """(bytes less in this moment, whether everything then fits, key=value) of every change that helps."""
    before = totals(parts_of(plan))[moment]
    for text, changed in _changes(plan, config):
        after = totals(parts_of(changed))
        if after[moment] < before:
            yield before - after[moment], max(after.values()) <= plan.accelerator.memory, text


def _changes(plan: RankPlan, config: DictConfig) -> Iterator[Change]:
    """What could be set otherwise, and the plan that it makes."""
    actor, critic, engine = plan.actor, plan.critic, plan.engine
    for key in ("param_offload", "optimizer_offload"):
        if not getattr(actor, key):
            yield f"{ACTOR}.fsdp_config.{key}=true", replace(plan, actor=replace(actor, **{key: True}))
        if critic is not None and not getattr(critic, key):
            yield f"critic.model.fsdp_config.{key}=true", replace(plan, critic=replace(critic, **{key: True}))
    if not actor.offload_policy:
        strategy = "" if config.actor_rollout_ref.actor.strategy == "fsdp2" else f"{ACTOR}.strategy=fsdp2 "
        yield (
            f"{strategy}{ACTOR}.fsdp_config.offload_policy=true (slow: the optimizer runs on the CPU)",
            replace(plan, actor=replace(actor, offload_policy=True), root=1),
        )
    if plan.chunk is None:
        yield f"fusion.logits_chunk={CHUNK}", replace(plan, chunk=CHUNK)
    yield from _fewer_tokens(plan, config)
    yield from _smaller_engine(plan)
    if not engine.sleeps:
        yield f"{ROLLOUT}.free_cache_engine=true", replace(plan, engine=replace(engine, sleeps=True))
    if plan.reward is not None:
        share = plan.reward.share / 2
        yield f"reward.reward_model.rollout.gpu_memory_utilization={share}", replace(plan, reward=replace(plan.reward, share=share))
    yield from _more_ranks(plan, config)


def _fewer_tokens(plan: RankPlan, config: DictConfig) -> Iterator[Change]:
    """As few as one row has."""
    row = config.data.max_prompt_length + config.data.max_response_length
    if config.actor_rollout_ref.actor.use_dynamic_bsz and row < plan.actor.tokens:
        yield f"{ACTOR}.ppo_max_token_len_per_gpu={row}", replace(plan, actor=replace(plan.actor, tokens=row))


def _smaller_engine(plan: RankPlan) -> Iterator[Change]:
    """The largest share that fits beside the rest, in steps of 0.05, if it still holds the engine's weights twice."""
    if plan.engine.share is None:
        return
    memory = plan.accelerator.memory
    beside = totals(parts_of(plan))["generation"] - plan.engine.share * memory
    share = int((memory - beside) / memory * 20) / 20
    if 2 * plan.engine.weights <= share * memory < plan.engine.share * memory:
        yield f"{ROLLOUT}.gpu_memory_utilization={share}", replace(plan, engine=replace(plan.engine, share=share))


def _more_ranks(plan: RankPlan, config: DictConfig) -> Iterator[Change]:
    """The smallest power of two times as many that fits, or the largest that is tried."""
    times, changed = 1, plan
    while times < MOST_RANKS and (times == 1 or max(totals(parts_of(changed)).values()) > plan.accelerator.memory):
        times *= 2
        critic = plan.critic and replace(plan.critic, shards=plan.critic.shards * times)
        changed = replace(plan, actor=replace(plan.actor, shards=plan.actor.shards * times), critic=critic)
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node * times
    yield f"{ranks} ranks (trainer.nnodes x trainer.n_gpus_per_node)", changed


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
