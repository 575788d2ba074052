"""Token weights by hand: what they are, which tokens they look at, and that no gradient passes through them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unify_posttrain.objective import (
    AboveFloor,
    Aggregation,
    CurrentPolicy,
    ExpEntropy,
    Members,
    PolicyGradient,
    Probability,
    Term,
    TokenWeight,
    TopEntropy,
    Uncertainty,
    compute_loss,
)

ALL = [
    Probability(),
    Uncertainty(),
    AboveFloor(0.3),
    ExpEntropy(0.1, 1),
    ExpEntropy(0.5, -1, "token"),
    ExpEntropy(0.5, -1, "batch"),
]
ALL += [TopEntropy(0.2)]


def close(actual: Tensor, expected: list | Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=tolerance, rtol=0)


def at(p: list[float]) -> dict[str, Tensor]:
    return {"log_probs": torch.tensor([p], dtype=torch.float64).log().requires_grad_()}


def test_probability_and_uncertainty() -> None:
    close(Probability()(at([0.1, 0.5, 0.9])), [[0.1, 0.5, 0.9]])
    close(Uncertainty()(at([0.1, 0.5, 0.9])), [[0.09, 0.25, 0.09]])  # p(1-p)


def test_floor_keeps_what_reaches_it() -> None:
    close(AboveFloor(0.25)(at([0.1, 0.25, 0.9])), [[0, 1, 1]])
    close(AboveFloor(0.0)(at([1e-300, 0.5])), [[1, 1]])


# --- SRFT: 0.5 e^-H and 0.1 e^H --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropy", "demo", "on"),
    [
        (0.0, 0.5, 0.1),
        (2.0, 0.067668, 0.738906),  # .5 * .135335, .1 * 7.389056
        (3.0, 0.024894, 2.008554),  # .5 * .049787, .1 * 20.085537
    ],
)
def test_exp_entropy_table(entropy: float, demo: float, on: float) -> None:
    tensors = {**at([0.5]), "entropys": torch.tensor([[entropy]], dtype=torch.float64), "response_mask": torch.ones(1, 1)}
    close(ExpEntropy(0.5, -1)(tensors), [[demo]])
    close(ExpEntropy(0.1, 1)(tensors), [[on]])
    close(ExpEntropy(0.1, 1, cap=0.5)(tensors), [[min(on, 0.5)]])


def test_entropy_scopes_on_g(fixture_g: Callable[[], dict]) -> None:
    batch = {**fixture_g(), "batch_entropy": torch.full((3,), 0.7)}
    # row means over trained tokens: (.2 + 1 + .4 + .8)/4 = .6, (.5 + .7 + .3)/3 = .5, (1.2 + .6)/2 = .9; NaN stands elsewhere
    rows = torch.tensor([0.6, 0.5, 0.9], dtype=torch.float64).exp()
    close(ExpEntropy(1.0, 1)(batch), rows.unsqueeze(-1).expand(3, 4))
    close(ExpEntropy(1.0, 1, "token")(batch)[0], torch.tensor([0.2, 1, 0.4, 0.8]).exp())
    close(ExpEntropy(1.0, -1, "batch")(batch), torch.full((3, 4), math.exp(-0.7)))


def test_sequence_entropy_leaves_hints_and_padding_out_and_survives_an_empty_row() -> None:
    tensors = {
        "log_probs": torch.zeros(2, 4),
        "entropys": torch.tensor([[9.0, 0.5, 0.7, 9.0], [9.0, 9.0, 9.0, 9.0]]),
        "response_mask": torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]),
        "prefix_mask": torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]),
    }
    close(ExpEntropy(1.0, 1)(tensors), torch.tensor([[0.6] * 4, [0.0] * 4]).exp())


# --- Prefix-RFT: the tokens where the policy is least sure -----------------------------------------------------------


def top(share: float, entropy: list[float], demo: list[int]) -> list[float]:
    mask = torch.tensor([demo])
    tensors = {"entropys": torch.tensor([entropy]), "response_mask": torch.ones_like(mask), "prefix_mask": mask}
    return TopEntropy(share)(tensors)[0].tolist()


@pytest.mark.parametrize(
    ("share", "kept"),
    [  # H .1 .9 .5 .7 .3: the order is 1, 3, 2, 4, 0
        (0.2, [0, 1, 0, 0, 0]),  # 5 tokens * .2 = 1
        (0.01, [0, 1, 0, 0, 0]),  # at least one
        (0.21, [0, 1, 0, 1, 0]),  # 1.05, rounded up
        (0.6, [0, 1, 1, 1, 0]),
        (1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_top_entropy_share(share: float, kept: list[int]) -> None:
    entropy = [0.1, 0.9, 0.5, 0.7, 0.3]
    assert top(share, entropy, [1] * 5) == kept
    # sampled tokens after the prefix neither compete nor count, however unsure
    assert top(share, [*entropy, 9.0, 9.0], [1] * 5 + [0, 0]) == [*kept, 0, 0]


def test_top_entropy_of_equals_takes_the_earlier_and_of_no_prefix_nothing() -> None:
    assert top(0.5, [0.4, 0.4, 0.4, 0.4], [1] * 4) == [1, 1, 0, 0]
    assert top(0.5, [0.4, 0.9], [0, 0]) == [0, 0]


# --- what holds of all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ALL, ids=lambda weight: weight.describe())
def test_weights_are_part_of_the_advantage_and_carry_no_gradient(random_batch: Callable, weight: TokenWeight) -> None:
    batch = random_batch(4, rows=9, width=6)
    leaves = [batch[name].requires_grad_() for name in ("log_probs", "entropys")]
    value = weight(batch)
    assert value.shape == (9, 6) and not value.requires_grad
    loss = PolicyGradient(CurrentPolicy(), 1.0, token_weight=weight)
    lp, entropy = torch.autograd.grad(loss.token_loss(batch).sum(), leaves, allow_unused=True)
    close(-lp, value, 1e-12)
    assert entropy is None
    close(loss.rho(batch), value, 1e-12)
    close(loss.statistics(batch)["weight"], value, 1e-12)


@pytest.mark.parametrize("weight", ALL, ids=lambda weight: weight.describe())
def test_a_weight_says_what_it_reads(random_batch: Callable, weight: TokenWeight) -> None:
    batch = random_batch(4, rows=3, width=4)
    term = Term("t", PolicyGradient(CurrentPolicy(), 1.0, token_weight=weight), Members("trained"), Aggregation("token-mean"))
    assert term.needs_entropy == weight.needs_entropy
    assert set(term.streams) == set(weight.streams)
    needed = {"log_probs", "response_mask", "prefix_mask", *weight.streams, *(["entropys"] if weight.needs_entropy else [])}
    compute_loss([term], {name: batch[name] for name in needed})
    for name in needed - {"log_probs", "response_mask", "prefix_mask"}:
        with pytest.raises(KeyError, match=rf"stream '{name}' is missing"):
            compute_loss([term], {key: value for key, value in batch.items() if key != name})


def test_descriptions_tell_weights_apart() -> None:
    described = [weight.describe() for weight in (*ALL[:4], ALL[4], ExpEntropy(0.1, 1, cap=0.5), TopEntropy(0.3))]
    assert len(set(described)) == len(described)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AboveFloor(1.0), r"fusion\.srft\.neg_prob_floor=1\.0.*\[0, 1\)"),
        (lambda: AboveFloor(-0.1), r"fusion\.srft\.neg_prob_floor=-0\.1"),
        (lambda: ExpEntropy(0.1, 1, "row"), r"fusion\.srft\.entropy_scope='row'.*sequence, token, batch"),
        (lambda: ExpEntropy(0.1, 1, cap=0.0), r"fusion\.srft\.weight_cap=0\.0"),
        (lambda: TopEntropy(0.0), r"fusion\.prefix_rft\.entropy_top=0\.0"),
        (lambda: TopEntropy(1.1), r"fusion\.prefix_rft\.entropy_top=1\.1"),
    ],
)
def test_bad_numbers_are_refused(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
