"""What lies in the memory of a rank's accelerator, part by part, during the update, during generation, and while a model scores.

    P weights, T of them trained, V words, H hidden, L layers, I intermediate, N tokens of a forward pass, R ranks that share a copy

Lower bounds: what is certainly there, from verl 0.7.1's code. Not counted: attention's workspaces, fragments of the allocator, LoRA
adapters, gathered weights of a layer. `LARGEST` marks what is there at different times of a moment: the largest of them counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unify_posttrain.shapes import Shape

FP32 = 4
# Numbers of the size of the logits that live at the peak of one backward pass of log-probs, as multiples of the (N, V) logits in
# the dtype of the forward pass, the head's own weights not among them. Counted by tests/startup/test_logits_memory.py:
#   packed rows        4, without entropy and with a compiled one: verl divides the logits by the temperature in place, in a view of
#                      what the model returned, and autograd takes the gradient of that with three more copies. The cross entropy of
#                      flash-attention re-uses the memory of the logits; torch.compile keeps no (N, V) number but the logits
#   padded rows        2, without entropy: there is no view. verl compiles the entropy of packed rows alone
#   entropy, float32   7; in 16 bits 14, because autocast takes softmax, logsumexp and sum in float32 and keeps those copies
COPIES_PACKED, COPIES_PADDED, COPIES_ENTROPY, COPIES_ENTROPY_AUTOCAST = 4, 2, 7, 14
COPIES_CHUNK = 3  # of one chunk's logits, in float32, whatever is asked for (objective.log_probs)
# Activations that a layer keeps for its backward pass, per token: gate, up, their product and its activation; two norms, q, the
# attention's output, the inputs of two residual sums. Keys and values, which groups share, are left out.
FEED_FORWARD, WIDTH = 4, 6


@dataclass(frozen=True)
class Trained:
    """A model that is trained with FSDP: weights, gradients and Adam's two moments.

    Attributes:
        shape: its numbers; `parameters` must be known.
        frozen: weights that are not trained (LoRA: all of the base model; a frozen tower that sees).
        shards: ranks that share one copy.
        width: bytes of a stored weight, gradient and moment (fsdp_config.model_dtype).
        compute: bytes of a weight and an activation in the forward pass (fsdp_config.dtype).
        param_offload, optimizer_offload: in main memory except while it is updated.
        offload_policy: in main memory always (FSDP2); gradients, too.
        tokens: of a forward pass of its update, on one rank.
        checkpointing: only the inputs of layers are kept, a layer is computed again.
        activation_offload: and those wait in main memory.
        seeing: bytes that a part that sees keeps of the pictures of such a pass.
    """

    shape: Shape
    frozen: int
    shards: int
    width: int
    compute: int
    param_offload: bool
    optimizer_offload: bool
    offload_policy: bool
    tokens: int
    checkpointing: bool
    activation_offload: bool
    seeing: float = 0.0

    @property
    def weights(self) -> float:
        """Bytes of a rank's share."""
        return self.shape.parameters * self.width / self.shards

    @property
    def moments(self) -> float:
        """Bytes of a rank's share of Adam's two moments."""
        return 2 * self.gradients

    @property
    def gradients(self) -> float:
        """Bytes of a rank's share; verl frees them at the end of every update."""
        return (self.shape.parameters - self.frozen) * self.width / self.shards

    @property
    def resting_weights(self) -> float:  # bytes on the accelerator while something else runs
        return 0.0 if self.param_offload or self.offload_policy else self.weights

    @property
    def resting_moments(self) -> float:
        return 0.0 if self.optimizer_offload or self.offload_policy else self.moments

    @property
    def updating(self) -> float:
        """Bytes of weights, gradients and moments in its update."""
        return 0.0 if self.offload_policy else self.weights + self.gradients + self.moments


@dataclass(frozen=True)
class Engine:
    """The engine that generates, or the one of a reward model beside it.

    Attributes:
        name: rollout.name.
        share: of the accelerator's memory that it takes (gpu_memory_utilization); None: no such limit (transformers, CPU).
        sleeps: it gives its memory back for the update.
        weights: bytes of its own copy of the weights, on one rank.
    """

    name: str
    share: float | None
    sleeps: bool
    weights: float


@dataclass(frozen=True)
class Accelerator:
    """`accelerator` in conf/hardware, in bytes.

    Attributes:
        memory: as CUDA reports it.
        worker: what a process of training takes before any tensor (CUDA's context, buffers of NCCL).
        asleep: what an engine keeps while it sleeps.
    """

    name: str
    memory: float
    worker: float
    asleep: float


@dataclass(frozen=True)
class RankPlan:
    """All that the memory of a rank follows from.

    Attributes:
        actor, critic, engine: who shares the accelerator; critic None: there is none, or its model is not known.
        reference: bytes of the reference policy on the accelerator; None: there is none.
        entropy: the update computes entropies.
        packed: rows are put together without padding.
        compiled: verl compiles the entropies of packed rows.
        chunk: fusion.logits_chunk.
        root: matrices of the size of the embedding that FSDP gathers together.
        replay: a fine-tuning step has moments of its own.
        reward: of a reward model on the same accelerators; None: there is none.
        accelerator: None: its memory is not known, or it is main memory.
    """

    actor: Trained
    critic: Trained | None
    engine: Engine
    reference: float | None
    entropy: bool
    packed: bool
    compiled: bool
    chunk: int | None
    root: int
    replay: bool
    accelerator: Accelerator | None
    reward: Engine | None = None


@dataclass(frozen=True)
class Part:
    """Bytes of one thing in each of the moments. `largest`: of a moment's parts of this kind only the largest counts. While
    something is scored there is what there is during generation, engines apart."""

    name: str
    update: float = 0.0
    critic: float = 0.0
    generation: float = 0.0
    scored: float | None = None
    largest: bool = False

    @property
    def scoring(self) -> float:
        return self.generation if self.scored is None else self.scored


MOMENTS = ("update", "critic", "generation", "scoring")


def parts_of(plan: RankPlan) -> list[Part]:
    """Everything that is counted, in the order in which it is printed."""
    return [*_state(plan), *_others(plan), *_passing(plan), *_engine(plan)]


def totals(parts: list[Part]) -> dict[str, float]:
    """Bytes per moment: what stays, and the largest of what comes and goes."""

    def total(moment: str) -> float:
        stays = sum(getattr(part, moment) for part in parts if not part.largest)
        return stays + max((getattr(part, moment) for part in parts if part.largest), default=0.0)

    return {moment: total(moment) for moment in MOMENTS}


def _state(plan: RankPlan) -> Iterator[Part]:
    """The actor's. `verl.workers.fsdp_workers`: update_actor loads what is offloaded and offloads it again."""
    actor = plan.actor
    on, shards = 0.0 if actor.offload_policy else 1.0, f", 1/{actor.shards}" if actor.shards > 1 else ""
    rest = actor.resting_weights
    yield Part(f"weights ({_dtype(actor.width)}{shards})", on * actor.weights, rest, rest)
    if actor.gradients:
        yield Part("gradients", on * actor.gradients)
        yield Part("Adam's two moments", on * actor.moments, actor.resting_moments, actor.resting_moments)
    if plan.replay:  # with optimizer_offload the two optimizers take turns (FusionWorker._at_replay_rate)
        yield Part("moments of the replayed step", *(actor.resting_moments,) * 3)


def _others(plan: RankPlan) -> Iterator[Part]:
    """Critic and reference, which share the accelerator with the actor."""
    critic = plan.critic
    if critic is not None:
        rest = critic.resting_weights + critic.resting_moments
        yield Part("critic", rest, critic.updating, rest)
    if plan.reference is not None:  # verl forces CPU offloading on the reference, whatever ref.fsdp_config says
        yield Part("reference policy" if plan.reference else "reference policy (in main memory)", *(plan.reference,) * 3)


def _passing(plan: RankPlan) -> Iterator[Part]:
    """What a pass over N tokens needs besides, of actor and critic."""
    actor, critic = plan.actor, plan.critic
    shape, tokens, embedding = actor.shape, actor.tokens, plan.root * actor.shape.embedding
    critic_embedding = critic.shape.embedding if critic else 0  # a value head stands in place of the output head
    gathered, width = _gathered(actor, embedding), _gathered(critic, critic_embedding)
    if gathered:
        yield Part(f"gathered embedding{' and head' if plan.root > 1 else ''}", gathered, width)
    kept, again = _activations(actor)
    critic_kept, critic_again = _activations(critic) if critic else (0.0, 0.0)
    yield Part(f"inputs of {shape.layers} layers" if actor.checkpointing else f"{shape.layers} layers", kept, critic_kept)
    if actor.seeing:
        yield Part("vision tower, of the pictures of a pass", actor.seeing)
    if plan.chunk is None:
        size = tokens * shape.vocabulary * actor.compute
        yield Part(f"logits of {tokens} tokens, {_copies(plan)} x {_gigabytes(size)} GB", _copies(plan) * size, largest=True)
    else:
        chunk = min(plan.chunk, tokens)
        # and the head's gradient, which the chunks are added to in float32
        size = COPIES_CHUNK * chunk * shape.vocabulary * FP32 + shape.embedding * FP32
        yield Part(f"logits of {chunk} of {tokens} tokens, and the head's gradient", size, largest=True)
    if again or critic_again:
        yield Part("one layer, computed again", again, critic_again, largest=True)
    # Gradients of what FSDP gathered: in the dtype of the pass, and in float32, in which verl adds them up over ranks.
    reduced = "embedding and head" if plan.root > 1 else "embedding"
    yield Part(
        f"whole gradients of {reduced}{'' if actor.compute == FP32 else ', 16 bits and float32'}",
        _reduced(actor, embedding),
        _reduced(critic, critic_embedding) if critic else 0.0,
        largest=True,
    )


def _activations(model: Trained) -> tuple[float, float]:
    """Bytes that the layers keep for the backward pass, and of a layer that is computed again."""
    layer = model.tokens * (FEED_FORWARD * model.shape.intermediate + WIDTH * model.shape.hidden) * model.compute
    if not model.checkpointing:
        return model.shape.layers * layer, 0.0
    inputs = model.shape.layers * model.tokens * model.shape.hidden * model.compute
    return 0.0 if model.activation_offload else inputs, layer


def _gathered(model: Trained | None, embedding: int) -> float:
    """Bytes of the weights that FSDP gathers for a whole pass: the root's. They are the stored ones on one rank in one dtype."""
    return embedding * model.compute if model and (model.shards > 1 or model.compute != model.width) else 0.0


def _reduced(model: Trained, embedding: int) -> float:
    if model.frozen == model.shape.parameters:
        return 0.0
    return embedding * (FP32 if model.compute == FP32 else model.compute + FP32)


def _copies(plan: RankPlan) -> int:
    if not plan.entropy:
        return COPIES_PACKED if plan.packed else COPIES_PADDED
    if plan.packed and plan.compiled:
        return COPIES_PACKED
    return COPIES_ENTROPY if plan.actor.compute == FP32 else COPIES_ENTROPY_AUTOCAST


def _engine(plan: RankPlan) -> Iterator[Part]:
    """vLLM's share holds its weights, its cache and what it needs to run; asleep, it keeps context, NCCL and CUDA graphs."""
    engine, accelerator = plan.engine, plan.accelerator
    if accelerator is not None:
        yield Part("CUDA's context, NCCL", *(accelerator.worker,) * 3)
    if engine.share is None:
        yield Part(f"engine ({engine.name}): its own weights", *(engine.weights,) * 3)
    elif accelerator is not None:
        awake, asleep = _awake_and_asleep(engine, accelerator)
        label = f"engine ({engine.name}): {engine.share:.0%}, asleep for the update"
        yield Part(label, asleep, asleep, awake, scored=asleep)
    if plan.reward is not None and accelerator is not None:
        awake, asleep = _awake_and_asleep(plan.reward, accelerator)
        yield Part(f"{plan.reward.name}: {plan.reward.share:.0%} while it scores", asleep, asleep, asleep, scored=awake)


def _awake_and_asleep(engine: Engine, accelerator: Accelerator) -> tuple[float, float]:
    awake = (engine.share or 0.0) * accelerator.memory
    return awake, accelerator.asleep if engine.sleeps else awake


def _dtype(width: int) -> str:
    return "float32" if width == FP32 else "16 bits"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g}"
