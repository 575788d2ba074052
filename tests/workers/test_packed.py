"""Rows without padding, as GPUs train them, against padded rows, as CPUs do: the same gradients, metrics and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import transformers.masking_utils as masking_utils
from omegaconf import OmegaConf
from torch import Tensor
from verl.workers.actor import DataParallelPPOActor

from unify_posttrain.algorithms import ALGORITHMS
from unify_posttrain.config import compose_config
from unify_posttrain.workers.forward import ChunkedForward

from . import flash_attn_stand_in
from .actor_kit import BASE, RESPONSE, VOCABULARY, gradient_distance, make_actor, make_model, start_group
from .critic_kit import make_critic, make_value_batch
from .packed_kit import FEW, TOKENS, TOLERANCE, Outcome, Path, assert_same, attended, farthest, for_log_probs, outcome
from .packed_kit import rows_of_every_kind as rows

pytestmark = pytest.mark.usefixtures("flash_attn")

ALL = Path(chunk=7, dynamic=True, checkpointing=True)
OTHERS = [Path(), Path(dynamic=True), Path(chunk=7)]


@cache
def padded(name: str) -> Outcome:
    return outcome(name, Path(packed=False))


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
    batch = rows()
    actor = make_actor("algorithm=hpt", module=module, settings=Path(chunk=7).settings)
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
    batch = rows()
    batch.batch["attention_mask"][:] = 0
    batch.meta_info.update(micro_batch_size=12, use_dynamic_bsz=False)
    streams = make_actor("algorithm=hpt", settings=Path(chunk=chunk).settings).compute_log_prob(batch, calculate_entropy=True)
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
    batch = for_log_probs(rows(), dynamic)
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
        return critic.gradients, metrics, critic.compute_values(for_log_probs(batch, dynamic))

    (gradients, metrics, values), (reference, expected, other) = update(True, dynamic), update(False, False)
    assert len(gradients) == 2
    for one, two in zip(gradients, reference, strict=True):
        assert gradient_distance(one, two) < TOLERANCE
    assert metrics == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(values, other, rtol=1e-6, atol=1e-6)
