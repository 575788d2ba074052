"""Online SFT is the policy gradient of a KL-regularised reward: exactly, on a policy whose every response can be written down.

Three tokens, one of which ends a response, responses of at most three tokens: 15 of them. The policy is a table of logits, one row
per beginning of a response, in float64. With π(y) known, expectations over rollouts are sums, and

    J = E[R] - β KL(π ‖ π_ref),    KL = Σ_y π(y) log π(y)/π_ref(y)

can be differentiated directly. The loss goes through the real reward, advantage and term.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience.advantages import ScoredRows
from unify_posttrain.objective import compute_loss

VOCABULARY, END, LONGEST = 3, 2, 3
BETA = 0.3
Build = Callable[..., Algorithm]


def responses() -> list[tuple[int, ...]]:
    """Every response: it stops at END, or at the longest length."""
    found = []
    for length in range(1, LONGEST + 1):
        for tokens in product(range(VOCABULARY), repeat=length):
            ended = tokens[-1] == END or length == LONGEST
            if ended and END not in tokens[:-1]:
                found.append(tokens)
    return found


RESPONSES = responses()
BEGINNINGS = {beginning: number for number, beginning in enumerate(sorted({y[:t] for y in RESPONSES for t in range(len(y))}))}
MASK = torch.tensor([[t < len(y) for t in range(LONGEST)] for y in RESPONSES])


def log_probs_of(logits: Tensor) -> Tensor:
    """(responses, LONGEST) log π(y_t | y_<t) under a table of logits (beginnings, VOCABULARY); 0 after the end."""
    table = logits.log_softmax(dim=-1)
    rows = [
        [table[BEGINNINGS[y[:t]], y[t]] if t < len(y) else torch.zeros((), dtype=table.dtype) for t in range(LONGEST)]
        for y in RESPONSES
    ]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.fixture(scope="module")
def world() -> dict[str, Tensor]:
    """Policy, reference, and a reward per response."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    logits, reference = normal(len(BEGINNINGS), VOCABULARY).requires_grad_(), normal(len(BEGINNINGS), VOCABULARY)
    log_probs = log_probs_of(logits)
    return {"logits": logits, "log_probs": log_probs, "reference": log_probs_of(reference), "rewards": normal(len(RESPONSES))}


def exact_gradient(world: dict[str, Tensor], rewards: Tensor, beta: float) -> Tensor:
    """∇ (E[R] - β KL) on the logits, by differentiating the two sums."""
    total, reference = world["log_probs"].sum(dim=-1), world["reference"].sum(dim=-1)
    objective = (total.exp() * (rewards - beta * (total - reference))).sum()
    return torch.autograd.grad(objective, world["logits"], retain_graph=True)[0]


def expected_gradient(built: Algorithm, world: dict[str, Tensor], rewards: Tensor, group: int) -> Tensor:
    """Minus the expected gradient of the loss of one prompt with `group` rollouts, over all groups that can be drawn."""
    draws = torch.tensor(list(product(range(len(RESPONSES)), repeat=group)))  # (draws, group)
    rows = draws.flatten()
    log_probs = world["log_probs"].detach()[rows].requires_grad_()
    uids = [str(number) for number in range(len(draws)) for _ in range(group)]
    old, reference, mask = world["log_probs"].detach()[rows], world["reference"][rows], MASK[rows]
    kinds = np.zeros(len(rows), dtype=np.int8)
    scored = ScoredRows(rewards[rows], uids, kinds, mask=mask, old_log_probs=old, ref_log_prob=reference)
    advantages = built.advantage(scored)
    batch = {
        "log_probs": log_probs,
        "old_log_probs": old,
        "ref_log_prob": reference,
        "response_mask": mask.long(),
        "advantages": advantages.unsqueeze(-1) * mask,
        "scores": built.advantage.rewards(scored),
    }
    loss, _ = compute_loss(built.terms, batch)
    # The loss is a mean over all rows: times their number it is a sum, whose rows are weighted by how often they are drawn and
    # divided by the size of the group.
    slope = torch.autograd.grad(loss, log_probs)[0] * len(rows)
    probability = world["log_probs"].detach().sum(dim=-1).exp()
    weight = probability[draws].prod(dim=-1).repeat_interleave(group) / group
    carried = torch.zeros_like(world["log_probs"]).index_add(0, rows, slope * weight.unsqueeze(-1))
    return -torch.autograd.grad(world["log_probs"], world["logits"], carried, retain_graph=True)[0]


def same(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)


def built_with(tiny: Build, **own: object) -> Algorithm:
    return tiny("online_sft", online_sft={"beta": BETA, "task": "model", **own})


def test_the_world_is_complete(world: dict[str, Tensor]) -> None:
    assert len(RESPONSES) == 15  # 1 of one token, 2 of two, 4*3 of three
    for name in ("log_probs", "reference"):
        assert world[name].sum(dim=-1).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("baseline", ["none", "beta"])
@pytest.mark.parametrize("beta", [0.0, BETA, 2.0])
def test_analytic_form_is_the_policy_gradient(tiny: Build, world: dict[str, Tensor], baseline: str, beta: float) -> None:
    built = built_with(tiny, beta=beta, baseline=baseline)
    same(expected_gradient(built, world, world["rewards"], group=1), exact_gradient(world, world["rewards"], beta))


def test_rule_based_rewards_are_plus_and_minus_one(tiny: Build, world: dict[str, Tensor]) -> None:
    solved = (world["rewards"] > 0).double()
    built = built_with(tiny, task="rule")
    same(expected_gradient(built, world, solved, group=1), exact_gradient(world, 2 * solved - 1, BETA))


def test_leave_one_out_is_the_policy_gradient(tiny: Build, world: dict[str, Tensor]) -> None:
    built = built_with(tiny, baseline="rloo")
    same(expected_gradient(built, world, world["rewards"], group=2), exact_gradient(world, world["rewards"], BETA))


@pytest.mark.parametrize(("group", "share"), [(2, 1 / 2), (3, 2 / 3)])
def test_group_mean_shrinks_it(tiny: Build, world: dict[str, Tensor], group: int, share: float) -> None:
    # R_i - mean R keeps (n-1)/n of R_i; what it subtracts of the others has no part in row i's gradient on average
    built = built_with(tiny, baseline="group_mean")
    same(expected_gradient(built, world, world["rewards"], group), share * exact_gradient(world, world["rewards"], BETA))


def test_pseudo_form_is_the_policy_gradient_with_baseline_beta(tiny: Build, world: dict[str, Tensor]) -> None:
    pseudo = expected_gradient(built_with(tiny, form="pseudo"), world, world["rewards"], group=1)
    same(pseudo, exact_gradient(world, world["rewards"], BETA))
    same(pseudo, expected_gradient(built_with(tiny, baseline="beta"), world, world["rewards"], group=1))


@pytest.mark.parametrize("own", [{"length_norm": "consistent"}, {"form": "pseudo", "length_norm": "published", "legacy": True}])
def test_length_normalised_forms_are_another_gradient(tiny: Build, world: dict[str, Tensor], own: dict) -> None:
    """Why `length_norm=none` is the default: dividing by the length is no constant factor."""
    found = expected_gradient(built_with(tiny, **own), world, world["rewards"], group=1)
    exact = exact_gradient(world, world["rewards"], BETA)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0)
    assert cosine < 0.999


def test_the_gradient_vanishes_at_the_optimum(tiny: Build, world: dict[str, Tensor]) -> None:
    """π* ∝ π_ref e^{R/β} maximises J: its logits are found from the value of each beginning, and no update moves them."""
    reference = world["reference"].sum(dim=-1)
    weight = (reference + world["rewards"] / BETA).exp()
    mass = dict(zip(RESPONSES, weight.tolist(), strict=True))
    logits = torch.zeros(len(BEGINNINGS), VOCABULARY, dtype=torch.float64)
    for beginning, number in BEGINNINGS.items():
        for token in range(VOCABULARY):
            start = (*beginning, token)
            logits[number, token] = sum(value for y, value in mass.items() if y[: len(start)] == start)
    logits = logits.log().requires_grad_()
    best = {**world, "logits": logits, "log_probs": log_probs_of(logits)}
    for own in ({}, {"form": "pseudo"}):
        gradient = expected_gradient(built_with(tiny, **own), best, best["rewards"], group=1)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
