"""What must not change a loss or its gradient: micro-batches, row order, padding, ranks, rubbish under the mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unify_posttrain.objective import (
    KL,
    MODES,
    Aggregation,
    CurrentPolicy,
    Entropy,
    Members,
    OldPolicy,
    PolicyGradient,
    PPOClip,
    Shaped,
    Term,
    compute_loss,
    count_members,
)

Batch = dict[str, Tensor]


def weighted_terms(mode: str) -> tuple[Term, ...]:
    """Three terms whose rows carry weights."""
    aggregation = Aggregation(mode, horizon=6, divisor=2)
    rl = PolicyGradient(OldPolicy(), "advantages", PPOClip(0.2, 0.28, dual=3.0))
    return (
        Term("rl", rl, Members("on", "rl_weight"), aggregation),
        Term("off", PolicyGradient(Shaped("p_div_p"), "advantages"), Members("demo", "rl_weight"), aggregation),
        Term("sft", PolicyGradient(CurrentPolicy(), 1.0), Members("demo", "sft_weight"), aggregation, coefficient=0.3),
    )


def every_term(mode: str) -> tuple[Term, ...]:
    """Every kind of term, with a shared count among them."""
    aggregation = Aggregation(mode, horizon=6, divisor=2)
    return (
        *weighted_terms(mode),
        Term(
            "reject",
            PolicyGradient(Shaped("reject"), "advantages"),
            Members("demo"),
            aggregation,
            counted=Members("trained"),
        ),
        Term("hint", PolicyGradient(CurrentPolicy(), 1.0), Members("hint"), aggregation, coefficient=0.1),
        Term("entropy", Entropy(), Members("trained"), aggregation, coefficient=-0.01),
        Term("kl", KL("k3"), Members("on"), aggregation, coefficient=0.05),
    )


def same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def taken(batch: Batch, rows: Tensor) -> Batch:
    return {name: value[rows] for name, value in batch.items()}


SEEDS, ROWS, WIDTHS = st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 6)


@given(SEEDS, ROWS, WIDTHS, st.integers(1, 9), st.sampled_from(MODES))
def test_micro_batches(
    random_batch: Callable, loss_and_gradient: Callable, seed: int, rows: int, width: int, size: int, mode: str
) -> None:
    batch, terms = random_batch(seed, rows, width), every_term(mode)
    parts = torch.arange(rows).split(size)
    same(loss_and_gradient(terms, batch, parts), loss_and_gradient(terms, batch))


@given(SEEDS, ROWS, WIDTHS, st.integers(1, 4), st.integers(1, 3), st.sampled_from(MODES))
def test_ranks(
    random_batch: Callable,
    loss_and_gradient: Callable,
    seed: int,
    rows: int,
    width: int,
    ranks: int,
    micro: int,
    mode: str,
) -> None:
    """R ranks with `micro` micro-batches each, rows dealt like cards; some parts may be empty."""
    batch, terms = random_batch(seed, rows, width), every_term(mode)
    parts = [torch.arange(rows)[number :: ranks * micro] for number in range(ranks * micro)]
    same(loss_and_gradient(terms, batch, parts, ranks), loss_and_gradient(terms, batch))


@given(SEEDS, ROWS, WIDTHS, st.sampled_from(MODES))
def test_row_order(random_batch: Callable, loss_and_gradient: Callable, seed: int, rows: int, width: int, mode: str) -> None:
    batch, terms = random_batch(seed, rows, width), every_term(mode)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    loss, gradient = loss_and_gradient(terms, batch)
    same(loss_and_gradient(terms, taken(batch, order)), (loss, gradient[order]))


@given(SEEDS, ROWS, WIDTHS, st.integers(1, 4), st.sampled_from(MODES), st.sampled_from(["mask", "weight", "both"]))
def test_padding_rows(
    random_batch: Callable,
    loss_and_gradient: Callable,
    seed: int,
    rows: int,
    width: int,
    extra: int,
    mode: str,
    by: str,
) -> None:
    """Copies of other rows that are silenced by a zero mask, by zero weights (terms with weights), or by both."""
    batch, terms = random_batch(seed, rows, width), weighted_terms(mode) if by == "weight" else every_term(mode)
    padding = taken(batch, torch.arange(extra) % rows)
    if by != "weight":
        padding.update({name: torch.zeros_like(padding[name]) for name in ("response_mask", "prefix_mask")})
    if by != "mask":
        padding.update({name: torch.zeros_like(padding[name]) for name in ("rl_weight", "sft_weight")})
    padded = {name: torch.cat([value, padding[name]]) for name, value in batch.items()}
    loss, gradient = loss_and_gradient(terms, batch)
    same(loss_and_gradient(terms, padded), (loss, torch.cat([gradient, torch.zeros(extra, width, dtype=torch.float64)])))


@given(SEEDS, ROWS, WIDTHS, st.integers(1, 5), st.sampled_from(MODES))
def test_padded_width(
    random_batch: Callable, loss_and_gradient: Callable, seed: int, rows: int, width: int, extra: int, mode: str
) -> None:
    batch, terms = random_batch(seed, rows, width), every_term(mode)
    rubbish = random_batch(seed + 1, rows, extra)
    masks = {name: torch.zeros_like(rubbish[name]) for name in ("response_mask", "prefix_mask")}
    wide = {
        name: torch.cat([value, {**rubbish, **masks}[name]], dim=1) if value.ndim == 2 else value for name, value in batch.items()
    }
    loss, gradient = loss_and_gradient(terms, batch)
    same(
        loss_and_gradient(terms, wide),
        (loss, torch.cat([gradient, torch.zeros(rows, extra, dtype=torch.float64)], dim=1)),
    )


@given(SEEDS, st.integers(2, 9), WIDTHS, st.sampled_from(MODES))
def test_metrics_add_up_too(random_batch: Callable, seed: int, rows: int, width: int, mode: str) -> None:
    batch, terms = random_batch(seed, rows, width), every_term(mode)
    counts = count_members(terms, batch)
    whole = compute_loss(terms, batch)[1]
    halves = [compute_loss(terms, taken(batch, part), counts)[1] for part in torch.arange(rows).split(rows // 2)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(half[name] for half in halves), value, atol=1e-12, rtol=1e-12)


# --- empty parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kept", ["nothing", "rollouts", "demonstrations"])
def test_empty_components_are_zero_finite_and_connected(random_batch: Callable, mode: str, kept: str) -> None:
    batch = random_batch(17, rows=12, width=5)
    is_demo = (batch["prefix_mask"] & batch["response_mask"].bool()).any(dim=-1, keepdim=True)
    keep = {"nothing": torch.zeros_like(is_demo), "rollouts": ~is_demo, "demonstrations": is_demo}[kept]
    batch["response_mask"] = batch["response_mask"] * keep
    batch["prefix_mask"] = batch["prefix_mask"] & keep & batch["response_mask"].bool()
    batch["rl_weight"] = batch["sft_weight"] = torch.ones(12)
    leaf = batch["log_probs"].requires_grad_()
    loss, metrics = compute_loss(every_term(mode), batch)
    gradient = torch.autograd.grad(loss, leaf)[0]
    assert all(torch.isfinite(value) for value in (loss, *metrics.values()))
    # the gradient acts on the rows that are kept, and on no other
    trained = batch["response_mask"].bool()
    assert torch.equal(gradient != 0, (gradient != 0) & trained)
    assert bool((gradient != 0).any()) == (kept != "nothing")
    if kept == "nothing":
        assert loss.item() == 0.0
        assert all(value.item() == 0.0 for value in metrics.values())
    empty = {"nothing": ["rl", "off", "sft"], "rollouts": ["off", "sft", "reject"], "demonstrations": ["rl", "kl"]}[kept]
    assert all(metrics[f"{name}_loss"].item() == 0.0 for name in empty)


@given(SEEDS, ROWS, WIDTHS)
def test_sft_gradient_exists_exactly_where_a_demonstration_is(random_batch: Callable, seed: int, rows: int, width: int) -> None:
    batch = random_batch(seed, rows, width)
    leaf = batch["log_probs"].requires_grad_()
    loss, _ = compute_loss(weighted_terms("token-mean")[2:], batch)
    gradient = torch.autograd.grad(loss, leaf)[0]
    demonstrations = batch["prefix_mask"] & batch["response_mask"].bool() & (batch["sft_weight"] != 0).unsqueeze(-1)
    assert torch.equal(gradient != 0, demonstrations)


# --- rubbish under the mask ------------------------------------------------------------------------------------------

TOKEN_STREAMS = ["log_probs", "old_log_probs", "ref_log_prob", "entropys", "advantages", "uniforms"]


@pytest.mark.parametrize("name", TOKEN_STREAMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "-inf"])
def test_rubbish_outside_every_class_leaves_values_alone(random_batch: Callable, name: str, bad: float) -> None:
    batch, terms = random_batch(23, rows=8, width=5), every_term("token-mean")
    dirty = {**batch, name: torch.where(_outside(batch), bad, batch[name])}
    loss, metrics = compute_loss(terms, dirty)
    expected_loss, expected_metrics = compute_loss(terms, batch)
    torch.testing.assert_close(loss, expected_loss, atol=1e-12, rtol=1e-12)
    for key, value in expected_metrics.items():
        torch.testing.assert_close(metrics[key], value, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", TOKEN_STREAMS)
def test_nan_outside_every_class_leaves_gradients_alone(random_batch: Callable, loss_and_gradient: Callable, name: str) -> None:
    """0·NaN is NaN: a masked value is harmless only if it is replaced before it is multiplied, not after."""
    batch, terms = random_batch(23, rows=8, width=5), every_term("token-mean")
    dirty = {**batch, name: torch.where(_outside(batch), float("nan"), batch[name])}
    same(loss_and_gradient(terms, dirty), loss_and_gradient(terms, batch))


def _outside(batch: Batch) -> Tensor:
    outside = ~(batch["response_mask"].bool() | batch["prefix_mask"])
    assert outside.any()
    return outside


def test_old_log_probs_of_demonstrations_are_never_read(random_batch: Callable, loss_and_gradient: Callable) -> None:
    batch, terms = random_batch(29, rows=8, width=5), every_term("token-mean")
    demonstration = batch["prefix_mask"] & batch["response_mask"].bool()
    assert demonstration.any()
    expected = loss_and_gradient(terms, batch)
    for value in (0.0, -3.0, float("nan")):
        dirty = {**batch, "old_log_probs": torch.where(demonstration, value, batch["old_log_probs"])}
        same(loss_and_gradient(terms, dirty), expected)
