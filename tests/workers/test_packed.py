"""Rows without padding, as GPUs train them, against padded rows, as CPUs do: the same gradients, metrics and log-probabilities.

All in float32. The two paths add up the same numbers in another order (a long row of attention scores with zeros in it, or a short
one), so that gradients differ by rounding: 3e-7 of their norm was seen, and the tests of power differ by 1e-2 and more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import transformers.masking_utils as masking_utils
from omegaconf import OmegaConf
from torch import Tensor
from verl import DataProto
from verl.workers.actor import DataParallelPPOActor

from unify_posttrain.algorithms import ALGORITHMS
from unify_posttrain.config import compose_config
from unify_posttrain.workers.forward import ChunkedForward

from . import flash_attn_stand_in
from .actor_kit import BASE, PROMPT, RESPONSE, VOCABULARY, gradient_distance, make_actor, make_batch, make_model, start_group
from .critic_kit import make_critic, make_value_batch

pytestmark = pytest.mark.usefixtures("flash_attn")

TOLERANCE = 1e-6
TOKENS = 40  # of a dynamic micro-batch; rows have up to 16
TEMPERATURE = 0.8
FEW = ("hpt", "online_sft", "relift", "srft", "uft")  # likelihood and ratio; a reference model; replay; entropies; hints


@dataclass(frozen=True)
class Path:
    """How the rows go through the model."""

    packed: bool = True
    chunk: int | None = None
    dynamic: bool = False
    checkpointing: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        return (
            f"++actor_rollout_ref.actor.use_remove_padding={str(self.packed).lower()}",
            f"fusion.logits_chunk={'null' if self.chunk is None else self.chunk}",
            f"actor_rollout_ref.actor.use_dynamic_bsz={str(self.dynamic).lower()}",
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={TOKENS}",
            "actor_rollout_ref.actor.use_torch_compile=false",  # of the entropy alone, and not faster for ten tokens
        )


PADDED = Path(packed=False)
ALL = Path(chunk=7, dynamic=True, checkpointing=True)
OTHERS = [Path(chunk=chunk, dynamic=dynamic) for chunk in (None, 7) for dynamic in (False, True)]


@dataclass(frozen=True)
class Outcome:
    """What an actor made of a batch: per update its gradients and metrics; log-probs and entropies of the attended tokens."""

    gradients: list[list[dict[str, Tensor]]]
    metrics: list[dict[str, float]]
    streams: dict[str, Tensor]


def rows_of_every_kind() -> DataProto:
    batch = make_batch(rows=12, demonstrations=4, hints=4, padding=1)
    batch.meta_info.update(mini_batches=2, temperature=TEMPERATURE)
    return batch


def outcome(name: str, path: Path) -> Outcome:
    """Every objective that the algorithm has (its phases, its replayed step) once, then verl's log-prob stage."""
    module = make_model()
    actor = make_actor(f"algorithm={name}", *path.flags, module=module)
    if path.checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients, metrics = [], []

    def update(batch: DataProto) -> None:
        actor.gradients = []
        metrics.append(actor.update_policy(batch))
        gradients.append(actor.gradients)

    for phase in range(len(actor.phases)):
        actor.start_phase(phase)
        update(rows_of_every_kind())
    if actor.algorithm.replay_terms:
        batch = rows_of_every_kind()
        batch.meta_info.update(objective="replay", epochs=1, grad_clip=1e9)
        update(batch)
    batch = rows_of_every_kind()
    batch.meta_info.update(micro_batch_size=5, use_dynamic_bsz=path.dynamic, max_token_len=TOKENS)
    return Outcome(gradients, metrics, attended(batch, actor.compute_log_prob(batch, calculate_entropy=True)))


def attended(batch: DataProto, streams: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = batch.batch["attention_mask"][:, PROMPT:].bool()
    return {name: stream[mask] for name, stream in streams.items()}


@cache
def padded(name: str) -> Outcome:
    return outcome(name, PADDED)


def farthest(one: Outcome, other: Outcome) -> float:
    """The largest relative distance of two gradients of the same step."""
    pairs = [pair for updates in zip(one.gradients, other.gradients, strict=True) for pair in zip(*updates, strict=True)]
    assert pairs and all(sorted(a) == sorted(b) for a, b in pairs)
    return max(gradient_distance(a, b) for a, b in pairs)


def assert_same(one: Outcome, other: Outcome) -> None:
    assert farthest(one, other) < TOLERANCE
    for mine, reference in zip(one.metrics, other.metrics, strict=True):
        assert sorted(mine) == sorted(reference)
        for key, value in reference.items():
            assert mine[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    assert sorted(one.streams) == sorted(other.streams) == ["entropys", "log_probs"]
    for key, value in other.streams.items():  # log-probs around -4, of which float32 resolves 2e-7
        torch.testing.assert_close(one.streams[key], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_packed_rows_train_as_padded_rows(name: str) -> None:
    assert_same(outcome(name, ALL), padded(name))


@pytest.mark.parametrize("path", OTHERS, ids=str)
@pytest.mark.parametrize("name", [pytest.param(each, marks=() if each in FEW else pytest.mark.slow) for each in sorted(ALGORITHMS)])
def test_every_packed_path_trains_as_padded_rows(name: str, path: Path) -> None:
    assert_same(outcome(name, path), padded(name))


def test_the_model_sees_the_attended_tokens_of_all_rows_and_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise everything above would compare padded rows with padded rows."""
    module, seen = make_model(), []
    module.register_forward_pre_hook(lambda _module, _args, inputs: seen.append(inputs), with_kwargs=True)
    batch = rows_of_every_kind()
    actor = make_actor("algorithm=hpt", *Path(chunk=7).flags, module=module)
    actor.update_policy(batch)
    assert [inputs["attention_mask"] for inputs in seen] == [None, None]
    attention = batch.batch["attention_mask"]
    assert [tuple(inputs["input_ids"].shape) for inputs in seen] == [(1, int(half.sum())) for half in attention.chunk(2)]
    assert int(attention.sum()) < attention.numel()
    for inputs, half in zip(seen, attention.chunk(2), strict=True):
        assert inputs["position_ids"][0].tolist() == [position for row in half for position in range(int(row.sum()))]


@pytest.mark.parametrize("chunk", [None, 7])
def test_a_micro_batch_without_any_token_gives_zeros(chunk: int | None) -> None:
    """verl then sends the model one token of its own, so that ranks run equally many forward passes."""
    batch = rows_of_every_kind()
    batch.batch["attention_mask"][:] = 0
    batch.meta_info.update(micro_batch_size=12, use_dynamic_bsz=False)
    streams = make_actor("algorithm=hpt", *Path(chunk=chunk).flags).compute_log_prob(batch, calculate_entropy=True)
    assert all(torch.equal(stream, torch.zeros(12, RESPONSE)) for stream in streams.values())


# The comparison has power


def wrong_position(_positions: Tensor, packed: Tensor) -> Tensor:
    """One token in the middle of the micro-batch stands one further."""
    packed[len(packed) // 2] += 1
    return packed


def positions_of_one_row(_positions: Tensor, packed: Tensor) -> Tensor:
    """The rows stand behind each other as if they were one."""
    return torch.arange(len(packed)).unsqueeze(-1)


@pytest.mark.parametrize("damage", [wrong_position, positions_of_one_row])
def test_wrong_positions_are_noticed(damage: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def index_first_axis(values: Tensor, indices: Tensor) -> Tensor:
        return damage(values, flash_attn_stand_in.index_first_axis(values, indices))

    monkeypatch.setattr("flash_attn.bert_padding.index_first_axis", index_first_axis)
    with pytest.raises(AssertionError):
        assert_same(outcome("hpt", ALL), padded("hpt"))
    assert farthest(outcome("hpt", ALL), padded("hpt")) > 1e-2


def test_rows_that_see_the_rows_before_them_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positions are right, the mask is not: what an attention that ignores the borders of rows would compute."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", torch.zeros_like)
    assert farthest(outcome("hpt", ALL), padded("hpt")) > 1e-2


def test_tokens_put_back_one_place_too_far_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
        return flash_attn_stand_in.pad_input(hidden_states, (indices + 1) % (batch * seqlen), batch, seqlen)

    monkeypatch.setattr("flash_attn.bert_padding.pad_input", pad_input)
    assert farthest(outcome("hpt", ALL), padded("hpt")) > 1e-2


@pytest.mark.parametrize("leaking", [False, True])
def test_the_packed_mask_separates_rows(leaking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of 4, 1 and 5 tokens: no logit of a row has a gradient with respect to a token of another."""
    if leaking:
        monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", torch.zeros_like)
    model, lengths = make_model(), (4, 1, 5)
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    embedded = model.model.embed_tokens(torch.arange(3, 13).unsqueeze(0)).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, position_ids=positions, attention_mask=None, use_cache=False).logits
    assert logits.shape == (1, 10, VOCABULARY)
    for row, own in enumerate(torch.arange(10).split(lengths)):
        (gradient,) = torch.autograd.grad(logits[0, own].sum(), embedded, retain_graph=True)
        reached = set(gradient[0].abs().sum(dim=-1).nonzero().flatten().tolist())
        assert reached == (set(range(int(own[-1]) + 1)) if leaking else set(own.tolist())), row


# The other models


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_reference_policy_packs_its_rows(chunk: int | None, dynamic: bool) -> None:
    start_group()
    batch = rows_of_every_kind()
    batch.meta_info.update(micro_batch_size=5, use_dynamic_bsz=dynamic, max_token_len=TOKENS)
    config = OmegaConf.to_container(compose_config([*BASE, "algorithm=hpt"]).actor_rollout_ref.ref, resolve=True)

    def log_probs(packed: bool, chunk: int | None) -> Tensor:
        ref_config = OmegaConf.create({**config, "use_remove_padding": packed, "use_torch_compile": False})
        plain = DataParallelPPOActor(ref_config, make_model())
        policy = plain if chunk is None else ChunkedForward(ref_config, make_model(), None, chunk)
        return attended(batch, policy.compute_log_prob(batch))["log_probs"]

    torch.testing.assert_close(log_probs(True, chunk), log_probs(False, None), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_critic_packs_its_rows(dynamic: bool) -> None:
    def update(packed: bool, dynamic: bool):
        flags = (
            f"critic.model.use_remove_padding={str(packed).lower()}",
            f"critic.use_dynamic_bsz={str(dynamic).lower()}",
            f"critic.ppo_max_token_len_per_gpu={TOKENS}",
            "critic.ppo_mini_batch_size=6",
            "critic.ppo_micro_batch_size_per_gpu=6",
        )
        critic, batch = make_critic(*flags), make_value_batch(12)
        assert critic.use_remove_padding is packed
        metrics = critic.update_critic(batch)
        batch.meta_info.update(micro_batch_size=5, use_dynamic_bsz=dynamic, max_token_len=TOKENS)
        return critic.gradients, metrics, critic.compute_values(batch)

    (gradients, metrics, values), (reference, expected, other) = update(True, dynamic), update(False, False)
    assert len(gradients) == 2
    for one, two in zip(gradients, reference, strict=True):
        assert gradient_distance(one, two) < TOLERANCE
    assert metrics == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(values, other, rtol=1e-6, atol=1e-6)
