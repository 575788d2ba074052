"""Stabilisation masks: no mask, PPO clip with two bounds, dual clip. Losses by hand, masks against autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unify_posttrain.objective import (
    Aggregation,
    Members,
    NoStabiliser,
    OldPolicy,
    PolicyGradient,
    PPOClip,
    Stabiliser,
    Term,
    compute_loss,
)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def slope(stabiliser: Stabiliser, advantage: Tensor, surrogate: Tensor) -> Tensor:
    """d loss/du by autograd."""
    surrogate = surrogate.clone().requires_grad_()
    return torch.autograd.grad(stabiliser.token_loss(advantage, surrogate).sum(), surrogate)[0]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_no_stabiliser_is_minus_a_u() -> None:
    advantage, u = row(0.5, -0.5, 0.0), row(1.6, 0.1, 7.0)
    close(NoStabiliser().token_loss(advantage, u), row(-0.8, 0.05, 0.0))
    assert NoStabiliser().mask(advantage, u).all()
    assert NoStabiliser().fractions(advantage, u) == {}


def test_ppo_clip_on_fixture_f(fixture_f: Callable[[], dict]) -> None:
    # Rows 1, 2 of F, clip .2. Row 1, A = .5, r = 1.6, .8, 1: min(r, clip) = 1.2, .8, 1 -> -.5*3.0 = -1.5.
    # Row 2, A = -.5, r = 1, .5: max(.5 r, .5 clip) = .5, .5*.8 = .4 -> .9. Token mean: (-1.5 + .9)/5 = -.12.
    batch = fixture_f()
    ratio = (batch["log_probs"] - batch["old_log_probs"]).exp()[1:]
    loss = PPOClip(0.2, 0.2).token_loss(row(0.5, -0.5).T, ratio)
    mask = batch["response_mask"][1:].bool()
    close(loss[0, :3].detach(), row(-0.6, -0.4, -0.5)[0])
    close(loss[1, :2].detach(), row(0.5, 0.4)[0])
    assert loss[mask].mean().item() == pytest.approx(-0.12, abs=1e-6)


def test_ppo_clip_loses_its_gradient_only_where_it_would_go_too_far() -> None:
    # (A, r): > 0 above 1.2 and < 0 below .8 are cut; < 0 above 1.2 and > 0 below .8 are pulled back
    advantage, ratio = row(1, 1, 1, -1, -1, -1, 0), row(1.3, 1.1, 0.5, 0.7, 0.9, 1.5, 9)
    expected = row(0, -1, -1, 0, 1, 1, 0)
    close(slope(PPOClip(0.2, 0.2), advantage, ratio), expected)
    assert PPOClip(0.2, 0.2).mask(advantage, ratio).tolist() == [[False, True, True, False, True, True, True]]


def test_bounds_are_separate() -> None:
    # DAPO: low .2, high .28. r = 1.25 is inside 1.28 although outside 1.2
    assert PPOClip(0.2, 0.28).mask(row(1, 1, -1, -1), row(1.25, 1.29, 0.81, 0.79)).tolist() == [[True, False, True, False]]
    close(PPOClip(0.2, 0.28).token_loss(row(1.0), row(2.0)), row(-1.28))


def test_dual_clip_bounds_the_loss_of_a_negative_advantage() -> None:
    # A = -.5, c = 3: r = 5 would cost 2.5, costs .5*3 = 1.5; r = 2 costs 1.0; A = +.5, r = 5 is -.5*1.2 as before
    advantage, ratio = row(-0.5, -0.5, -0.5, 0.5), row(5.0, 2.0, 0.5, 5.0)
    clip = PPOClip(0.2, 0.2, dual=3.0)
    close(clip.token_loss(advantage, ratio), row(1.5, 1.0, 0.4, -0.6))
    close(slope(clip, advantage, ratio), row(0.0, 0.5, 0.0, 0.0))
    fractions = clip.fractions(advantage, ratio)
    close(fractions["clipfrac"], row(0, 0, 1, 1))
    close(fractions["clipfrac_lower"], row(1, 0, 0, 0))
    close(PPOClip(0.2, 0.2).fractions(advantage, ratio)["clipfrac_lower"], row(0, 0, 0, 0))


def test_without_a_dual_bound_the_loss_of_a_negative_advantage_has_none() -> None:
    # A = -.5: .5*5 = 2.5 and .5*100 = 50, with their gradients; r = .5 is cut at .8; the objective reports the same keys as with c
    advantage, ratio = row(-0.5, -0.5, -0.5), row(5.0, 100.0, 0.5)
    close(PPOClip(0.2, 0.2, None).token_loss(advantage, ratio), row(2.5, 50.0, 0.4))
    close(slope(PPOClip(0.2, 0.2, None), advantage, ratio), row(0.5, 0.5, 0.0))
    batch = {
        "log_probs": ratio.log().requires_grad_(),
        "old_log_probs": torch.zeros_like(ratio),
        "advantages": advantage,
        "response_mask": torch.ones(1, 3),
    }
    metrics = {}
    for dual in (None, 3.0):
        loss = PolicyGradient(OldPolicy(), "advantages", PPOClip(0.2, 0.2, dual))
        value, metrics[dual] = compute_loss([Term("rl", loss, Members("on"), Aggregation("token-mean"))], batch)
        assert value.item() == pytest.approx((52.9 if dual is None else 3.4) / 3)  # with c = 3: 1.5 + 1.5 + .4
    assert metrics[None].keys() == metrics[3.0].keys()
    assert [metrics[dual]["rl_clipfrac_lower"].item() for dual in (None, 3.0)] == pytest.approx([0, 2 / 3])


def test_a_ratio_of_one_is_never_clipped() -> None:
    # On-policy: even with bounds of zero the first update has its full gradient
    close(slope(PPOClip(0.0, 0.0), row(1.0, -1.0), row(1.0, 1.0)), row(-1.0, 1.0))


@given(
    advantage=st.floats(-3, 3),
    ratio=st.floats(0.01, 6),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    dual=st.none() | st.floats(1.01, 5),
)
def test_mask_says_where_the_gradient_is(advantage: float, ratio: float, low: float, high: float, dual: float | None) -> None:
    a, u = row(advantage), row(ratio)
    stabiliser = PPOClip(low, high, dual)
    expected = torch.where(stabiliser.mask(a, u), -a, 0.0)
    at_a_bound = any(abs(ratio - bound) < 1e-9 for bound in (1 - low, 1 + high, dual or 0))
    if not at_a_bound:
        close(slope(stabiliser, a, u), expected)


@given(advantage=st.floats(-3, 3), ratio=st.floats(0.01, 6))
def test_clipped_loss_is_never_below_the_unclipped(advantage: float, ratio: float) -> None:
    a, u = row(advantage), row(ratio)
    assert PPOClip(0.2, 0.28).token_loss(a, u).item() >= NoStabiliser().token_loss(a, u).item()


@pytest.mark.parametrize(
    ("bounds", "key"),
    [
        ((-0.1, 0.2, None), r"actor_rollout_ref\.actor\.clip_ratio_low=-0\.1"),
        ((1.5, 0.2, None), r"actor_rollout_ref\.actor\.clip_ratio_low=1\.5"),
        ((0.2, -0.2, None), r"actor_rollout_ref\.actor\.clip_ratio_high=-0\.2"),
        ((0.2, 0.2, 1.0), r"fusion\.dual_clip=1\.0.*null for none"),
    ],
)
def test_bad_bounds_are_refused(bounds: tuple, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        PPOClip(*bounds)


def test_descriptions_show_the_bounds() -> None:
    assert PPOClip(0.2, 0.28).describe() == "clip(0.8, 1.28)"
    assert PPOClip(0.2, 0.28, 3.0).describe() == "clip(0.8, 1.28), dual 3"
