"""The published loss of Online SFT: values and gradients of the specification, and what its variants do to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unify_posttrain.objective import Aggregation, Members, PseudoLikelihood, Term, compute_loss


def row(l: float, l_ref: float, length: int, score: float) -> dict[str, Tensor]:  # noqa: E741 - the paper's symbol
    """One sequence whose log-likelihood is spread evenly over its tokens; a masked column of rubbish at the end."""
    mask = torch.tensor([[1] * length + [0]])
    return {
        "log_probs": torch.tensor([[l / length] * length + [-7.0]], dtype=torch.float64, requires_grad=True),
        "ref_log_prob": torch.tensor([[l_ref / length] * length + [-9.0]], dtype=torch.float64),
        "response_mask": mask,
        "scores": torch.tensor([score], dtype=torch.float64),
    }


def value_and_slope(loss: PseudoLikelihood, tensors: dict[str, Tensor]) -> tuple[float, float]:
    """The row's loss, and dL/dl: every token's log-probability adds to l once."""
    value = loss.token_loss(tensors).sum()
    slope = torch.autograd.grad(value, tensors["log_probs"])[0]
    assert slope[0, -1] == 0
    assert len(set(slope[0, :-1].tolist())) == 1
    return value.item(), slope[0, 0].item()


@pytest.mark.parametrize(
    ("beta", "score", "norm", "length", "expected"),
    [  # l = -20, l_ref = -22, so k1 = 2. w = (R - beta k1)/l, L = -(w l + w l^2/2), dL/dl = -(R - beta k1 - beta)
        (0.1, 1.0, "none", 4, (7.2, -0.7)),  # w = .8/-20 = -.04: -(.8 - 8), -(1 - .2 - .1)
        (0.1, -1.0, "none", 4, (-10.8, 1.3)),  # w = -1.2/-20 = .06: -(-1.2 + 12), -(-1 - .2 - .1)
        (0.0, 1.0, "none", 4, (9.0, -1.0)),  # w = -.05: -(1 - 10)
        (0.1, 1.0, "consistent", 10, (0.0, -0.088)),  # l = -2, k1 = .2, w = .98/-2: -(.98 - .98), -(1 - .02 - .1)/10
    ],
)
def test_published_loss(beta: float, score: float, norm: str, length: int, expected: tuple[float, float]) -> None:
    actual = value_and_slope(PseudoLikelihood(beta, norm), row(-20.0, -22.0, length, score))
    assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("beta", "score", "slope"), [(0.1, 1.0, -0.76), (0.1, -1.0, 1.14), (0.0, 1.0, -0.95)])
def test_detaching_the_weight_in_both_places_is_another_gradient(beta: float, score: float, slope: float) -> None:
    """The counter-example of the specification: -(w + w l) = -(R - beta k1)(1 + 1/l)."""
    total = torch.tensor(-20.0, dtype=torch.float64, requires_grad=True)
    weight = (score - beta * (total - -22.0)).detach() / -20.0
    detached = torch.autograd.grad(-(weight * total + 0.5 * weight * total.square()), total)[0].item()
    assert detached == pytest.approx(slope, abs=1e-6)
    assert value_and_slope(PseudoLikelihood(beta), row(-20.0, -22.0, 4, score))[1] != pytest.approx(slope, abs=1e-3)


def test_published_length_norm_leaves_the_reward_a_hundredth() -> None:
    # s = l/10 = -2, w = (R - .1*2)/-20: dL/dl = -(d(w s)/dl + sg(w) s/10)
    # w s = (R - .1 k1)/10, so -( -.01 + (R - .2)/-20 * -2/10 ) = .01 - (R - .2)/100: R moves it by .01, not by 1
    loss = PseudoLikelihood(0.1, "published")
    slopes = [value_and_slope(loss, row(-20.0, -22.0, 10, score))[1] for score in (1.0, -1.0)]
    assert slopes == pytest.approx([0.002, 0.022], abs=1e-9)


def test_published_clip_of_the_weight() -> None:
    # |w| <= .01 instead of .04: constant, so -(w + w l) = -(-.01 + .2) = -.19
    assert value_and_slope(PseudoLikelihood(0.1, clip_weight=0.01), row(-20.0, -22.0, 4, 1.0))[1] == pytest.approx(-0.19)


@pytest.mark.parametrize(
    ("loss", "likelihoods", "expected"),
    [  # (l, l_ref). w is made from the l that is not bounded: dw/dl = -(R + beta l_ref)/l^2; where s is bounded dL/dl = -s dw/dl
        # k1 = 1, w = .9/-100 = -.009, s = -50: -(.45 - .009*2500/2) = 10.8; dw/dl = 9.1/10000, 50 * .00091 = .0455
        (PseudoLikelihood(0.1, clip_log_prob=-50.0), (-100.0, -101.0), (10.8, 0.0455)),
        # k1 = 2, w = .8/-20 = -.04, s = -10: -(.4 - .04*100/2) = 1.6; dw/dl = 1.2/400, 10 * .003 = .03
        (PseudoLikelihood(0.1, clip_log_prob=-10.0), (-20.0, -22.0), (1.6, 0.03)),
        # both clips: w = -.01 without gradient, s = -10: -(.1 - .01*100/2) = .4, and no gradient is left
        (PseudoLikelihood(0.1, clip_weight=0.01, clip_log_prob=-10.0), (-20.0, -22.0), (0.4, 0.0)),
    ],
)
def test_published_clip_of_the_likelihood(
    loss: PseudoLikelihood, likelihoods: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert value_and_slope(loss, row(*likelihoods, length=4, score=1.0)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("norm", ["published", "consistent"])
def test_the_bound_is_compared_after_the_division_by_length(norm: str) -> None:
    # l = -120 of 128 tokens: s = l/128 = -.9375 is above -10, so that the bound does not act; below -.5 it does
    sequence = row(-120.0, -121.0, 128, 1.0)
    assert value_and_slope(PseudoLikelihood(0.1, norm, clip_log_prob=-10.0), sequence) == value_and_slope(
        PseudoLikelihood(0.1, norm), sequence
    )
    # published: w = (1 - .1)/-120 = -.0075, s = -.5: -(.00375 - .0075*.25/2) = -.0028125
    if norm == "published":
        value = PseudoLikelihood(0.1, norm, clip_log_prob=-0.5).token_loss(sequence).sum().item()
        assert value == pytest.approx(-0.0028125, abs=1e-9)


def test_descriptions() -> None:
    assert PseudoLikelihood(0.1).describe() == "R - 0.1·k1 - 0.1"
    assert PseudoLikelihood(0.0).describe() == "R"
    published = PseudoLikelihood(0.1, "published", clip_weight=5.0, clip_log_prob=-50.0)
    assert published.describe() == "R - 0.1·k1 - 0.1, s = l/|y|, |w| ≤ 5, s ≥ -50"
    assert PseudoLikelihood(0.1, "consistent").describe() == "R - 0.1·k1 - 0.1, per token"


def test_a_likelihood_of_one_does_not_divide_by_zero() -> None:
    value, slope = value_and_slope(PseudoLikelihood(0.1), row(0.0, 0.0, 3, 1.0))
    assert abs(value) < 1e9 and abs(slope) < 1e9
    assert value == value and slope == slope


def test_a_row_is_one_number_on_its_first_sampled_token(random_batch: Callable) -> None:
    batch = random_batch(8, rows=24, width=6)
    loss = PseudoLikelihood(0.1).token_loss(batch)
    sampled = batch["response_mask"].bool() & ~batch["prefix_mask"]
    hinted = batch["prefix_mask"][:, 0] & sampled.any(dim=-1)
    assert hinted.any(), "rows whose first sampled token is not their first"
    assert torch.equal((loss != 0).sum(dim=-1), sampled.any(dim=-1).long())
    first = torch.where(sampled.any(dim=-1), sampled.long().argmax(dim=-1), 0)
    assert torch.equal(loss.gather(1, first[:, None]).squeeze(1), loss.sum(dim=-1))


def test_mean_over_sequences() -> None:
    # the two rewards of the table above: (7.2 - 10.8)/2; an empty row is none
    rows = [row(-20.0, -22.0, 4, 1.0), row(-20.0, -22.0, 4, -1.0), row(-20.0, -22.0, 4, 1.0)]
    batch = {name: torch.cat([each[name] for each in rows]) for name in rows[0]}
    batch["response_mask"][2] = 0
    loss, _ = compute_loss([Term("rl", PseudoLikelihood(0.1), Members("on"), Aggregation("seq-mean-token-sum"))], batch)
    assert loss.item() == pytest.approx(-1.8)


@pytest.mark.parametrize("name", ["scores", "ref_log_prob", "log_probs", "response_mask"])
def test_missing_stream_is_named(name: str) -> None:
    with pytest.raises(KeyError, match=rf"stream \W*{name}\W* is missing"):
        PseudoLikelihood(0.1).token_loss({key: value for key, value in row(-20.0, -22.0, 4, 1.0).items() if key != name})


def test_unknown_length_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fusion\.online_sft\.length_norm='mean'.*none, consistent, published"):
        PseudoLikelihood(0.1, "mean")
