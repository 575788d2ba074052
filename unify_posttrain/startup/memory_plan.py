"""From a composed configuration to the numbers that `startup.memory` adds up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.rollout.vllm_cpu_checks import declares_ranks
from unify_posttrain.shapes import Shape, model_shape
from unify_posttrain.startup.memory import FEED_FORWARD, WIDTH, Accelerator, Engine, RankPlan, Trained
from unify_posttrain.tasks.environment import image_limits
from unify_posttrain.tasks.episodes import episode_node

if TYPE_CHECKING:  # the doctor asks for a checkpoint's size without torch
    from unify_posttrain.algorithms import Algorithm

GIB = 1 << 30


def actor_shape(config: DictConfig) -> Shape | None:
    """Of the model that is trained; None: nothing is known of it."""
    return model_shape(config.actor_rollout_ref.model.path, declared_shape(config))


def critic_shape(config: DictConfig) -> Shape | None:
    """Of the critic, which has a value (a row of H weights and a bias) where the policy has an output head."""
    shape = model_shape(config.critic.model.path, declared_shape(config))
    if shape is None or shape.parameters is None:
        return None
    head = 0 if shape.tied else shape.embedding
    return Shape(**{**vars(shape), "parameters": shape.parameters - head + shape.hidden + 1})


def declared_shape(config: DictConfig) -> DictConfig | None:
    """The node `shape` of conf/model/NAME.yaml; configurations of earlier runs have none."""
    return OmegaConf.select(config, "shape")


def episode_picture_tokens(config: DictConfig) -> int:
    """Tokens of the images that an episode may show; 0 where rollouts are single answers."""
    node = episode_node(config)
    limits = None if node is None else image_limits(node)
    return 0 if limits is None else limits.images * limits.tokens


def trained_actor(config: DictConfig) -> Trained | None:
    """The policy as FSDP holds it; None: the number of the model's weights is not known."""
    shape = actor_shape(config)
    if shape is None or shape.parameters is None:
        return None
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    return _trained(config, shape, actor.fsdp_config, model, _tokens(config), _frozen(config, shape))


def rank_plan(config: DictConfig, algorithm: Algorithm, picture_tokens: int | None = None) -> RankPlan | None:
    """What a rank's memory follows from; None: the number of the model's weights is not known.

    Args:
        picture_tokens: the most that a row has, prompt and episode together; None: the data was not read, and those of an episode
            are all that is known.
    """
    trained = trained_actor(config)
    if trained is None:
        return None
    shape, actor, model = trained.shape, config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    algorithms = [phase.algorithm for phase in algorithm.phases]
    shown = episode_picture_tokens(config) if picture_tokens is None else picture_tokens
    trained = replace(trained, seeing=_seeing(config, trained, shown))
    replay = [each.replay_step for each in algorithms if each.replay_step is not None]
    return RankPlan(
        actor=trained,
        critic=trained_critic(config) if algorithm.needs_critic else None,
        engine=_engine(config, shape),
        reference=_reference(config, trained) if _has_reference(config) else None,
        entropy=actor.calculate_entropy or any(each.needs_entropy for each in algorithms),
        packed=model.use_remove_padding,
        compiled=actor.use_torch_compile,
        chunk=actor.fusion.logits_chunk,
        # FSDP1 keeps what is not a layer together; FSDP2 shards the embedding by itself unless it is the head, too.
        root=2 if actor.strategy == "fsdp" and not shape.tied else 1,
        replay=any(step.separate for step in replay),
        accelerator=accelerator_of(config),
        reward=_reward(config) if reward_model_shares(config) else None,
    )


def reward_model_shares(config: DictConfig) -> bool:
    """Whether verl puts a reward model on the accelerators of the policy: `reward.reward_model` without a pool of its own."""
    served = config.reward.reward_model
    return bool(served.enable and not served.enable_resource_pool)


def accelerator_of(config: DictConfig) -> Accelerator | None:
    """The node `accelerator` of conf/hardware."""
    node = OmegaConf.select(config, "accelerator")
    return None if node is None else Accelerator(str(node.name), node.gib * GIB, node.worker_gib * GIB, node.asleep_gib * GIB)


def width_of(dtype: Any) -> int:
    """Bytes of a number of a dtype in verl's spelling (fp32, float32, bf16, bfloat16, …; null: fp32)."""
    return 4 if dtype is None or "32" in str(dtype) else 2


def _trained(config: DictConfig, shape: Shape, fsdp: DictConfig, model: DictConfig, tokens: int, frozen: int) -> Trained:
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    size = fsdp.get("fsdp_size", -1)
    precision = OmegaConf.select(fsdp, "mixed_precision.param_dtype")
    return Trained(
        shape=shape,
        frozen=frozen,
        shards=size if 0 < size < ranks else ranks,
        width=width_of(fsdp.get("model_dtype")),
        compute=width_of(precision or fsdp.get("dtype") or "bfloat16"),
        param_offload=fsdp.param_offload,
        optimizer_offload=fsdp.optimizer_offload,
        offload_policy=fsdp.get("offload_policy", False) and config.actor_rollout_ref.actor.strategy == "fsdp2",
        tokens=tokens,
        checkpointing=model.enable_gradient_checkpointing,
        activation_offload=model.get("enable_activation_offload", False),
    )


def _frozen(config: DictConfig, shape: Shape) -> int:
    if _lora(config):
        return shape.parameters
    return shape.vision if config.actor_rollout_ref.actor.get("freeze_vision_tower", False) else 0


def _lora(config: DictConfig) -> bool:
    model = config.actor_rollout_ref.model
    return model.get("lora_rank", 0) > 0 or bool(model.get("lora_adapter_path"))


def trained_critic(config: DictConfig) -> Trained | None:
    """The critic likewise."""
    shape, critic = critic_shape(config), config.critic
    if shape is None:
        return None
    tokens = critic.ppo_max_token_len_per_gpu
    if not critic.use_dynamic_bsz:
        row = config.data.max_prompt_length + config.data.max_response_length
        tokens = critic.ppo_micro_batch_size_per_gpu * row // critic.ulysses_sequence_parallel_size
    return _trained(config, shape, critic.model.fsdp_config, critic.model, tokens, 0)


def _tokens(config: DictConfig) -> int:
    """Of a forward pass of the actor's update, on one rank."""
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return int(actor.ppo_max_token_len_per_gpu)  # per rank, Ulysses or not
    row = config.data.max_prompt_length + config.data.max_response_length
    return -(-actor.ppo_micro_batch_size_per_gpu * row // actor.ulysses_sequence_parallel_size)


def _seeing(config: DictConfig, model: Trained, picture_tokens: int) -> float:
    """Bytes that the part that sees keeps for the backward pass, of as few rows as fill one; 0 if it is not trained."""
    sight = model.shape.sight
    if sight is None or config.actor_rollout_ref.actor.get("freeze_vision_tower", False) or _lora(config):
        return 0.0
    rows = model.tokens // (config.data.max_prompt_length + config.data.max_response_length)
    kept = sight.hidden if model.checkpointing else FEED_FORWARD * sight.intermediate + WIDTH * sight.hidden
    return sight.layers * rows * picture_tokens * sight.merge**2 * kept * model.compute


def _has_reference(config: DictConfig) -> bool:
    """As `verl.trainer.ppo.utils.need_reference_policy`; with LoRA the base model is the reference."""
    if _lora(config):
        return False
    return config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward


def _reference(config: DictConfig, actor: Trained) -> float:
    """Bytes on a rank: nothing on a GPU; without one it is sharded as the actor is (FusionWorker)."""
    if not declares_ranks(config):
        return 0.0
    return actor.shape.parameters * width_of(config.actor_rollout_ref.ref.fsdp_config.get("model_dtype")) / actor.shards


def _engine(config: DictConfig, shape: Shape) -> Engine:
    rollout = config.actor_rollout_ref.rollout
    limited = rollout.name != "hf" and not declares_ranks(config)
    return Engine(
        name=rollout.name,
        share=rollout.gpu_memory_utilization if limited else None,
        sleeps=rollout.free_cache_engine and rollout.get("enable_sleep_mode", True),
        weights=shape.parameters * width_of(rollout.dtype) / rollout.tensor_model_parallel_size,
    )


def _reward(config: DictConfig) -> Engine:
    """Of its weights nothing is known here."""
    rollout = config.reward.reward_model.rollout
    return Engine("reward model", rollout.gpu_memory_utilization, bool(rollout.free_cache_engine), 0.0)
