"""Credit by turn: vectors of the estimator over turns, against a plain reference, and rewards on tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience.turn_advantages import place_turn_rewards, turn_gae, turn_spans, whitened

MASK = [1, 1, 0, 0, 1, 1, 0]


def layout(rewards: list[float], values: list[float], length: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turns of two tokens with one token of feedback; what is not read is 9, so that reading it shows."""
    tokens, critic, mask = [], [], []
    for reward, value in zip(rewards, values, strict=True):
        tokens += [0.0, reward, 0.0]
        critic += [value, 9.0, 9.0]
        mask += [1, 1, 0]
    pad = [0] * (length * 3 - len(mask))
    return torch.tensor([tokens + pad]), torch.tensor([critic + [9.0] * len(pad)]), torch.tensor([mask + pad])


def of_turns(tensor: torch.Tensor, mask: torch.Tensor) -> list[float]:
    return [float(row[begin]) for row, spans in zip(tensor, turn_spans(mask), strict=True) for begin, _ in spans]


@pytest.mark.parametrize(
    ("rewards", "values", "gamma", "lam", "advantages"),
    [
        # δ_3 = 5 - .1 = 4.9; δ_2 = -1 + .9·.1 - .2 = -1.11, Â_2 = -1.11 + .855·4.9 = 3.0795; δ_1 = -1 + .9·.2 - .5 = -1.32
        ([-1, -1, 5], [0.5, 0.2, 0.1], 0.9, 0.95, [1.312973, 3.0795, 4.9]),
        ([-2, 5], [0.0, 0.3], 0.9, 0.95, [2.2885, 4.7]),
        ([-1, -1, 5], [0.5, 0.2, 0.1], 1.0, 1.0, [2.5, 3.8, 4.9]),  # rewards still to come, less V
    ],
)
def test_vectors(rewards: list[float], values: list[float], gamma: float, lam: float, advantages: list[float]) -> None:
    tokens, critic, mask = layout(rewards, values)
    found, returns = turn_gae(tokens, critic, mask, gamma, lam, whiten=False)
    assert of_turns(found, mask) == pytest.approx(advantages, abs=1e-5)
    assert of_turns(returns, mask) == pytest.approx([a + v for a, v in zip(advantages, values, strict=True)], abs=1e-5)


def test_returns_and_whitening_over_the_turns_of_the_batch() -> None:
    first, second = layout([-1, -1, 5], [0.5, 0.2, 0.1]), layout([-2, 5], [0.0, 0.3])
    tokens, critic, mask = (torch.cat(pair) for pair in zip(first, second, strict=True))
    found, returns = turn_gae(tokens, critic, mask, 0.9, 0.95)
    assert of_turns(found, mask) == pytest.approx([-1.258906, -0.114471, 1.06493, -0.626916, 0.935361], abs=1e-5)
    assert of_turns(returns[:1], mask[:1]) == pytest.approx([1.812973, 3.2795, 5], abs=1e-5)
    # one number for all sampled tokens of a turn, nothing on feedback
    assert torch.equal(found[:, 0::3], found[:, 1::3]) and not found[:, 2::3].any() and not returns[:, 2::3].any()


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 4), st.floats(-5, 5), st.floats(-3, 3)), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_against_a_plain_reference(batch: list[list[tuple[int, float, float]]], gamma: float, lam: float) -> None:
    """Â_k = Σ_j (γλ)^j δ_{k+j}, with the sum written out."""
    length = max(sum(tokens + 1 for tokens, *_ in row) for row in batch)
    rewards, values, mask = (torch.zeros(len(batch), length, dtype=kind) for kind in (torch.float64, torch.float64, torch.long))
    expected = []
    for number, row in enumerate(batch):
        place = 0
        for tokens, reward, value in row:
            mask[number, place : place + tokens] = 1
            rewards[number, place + tokens - 1], values[number, place] = reward, value
            place += tokens + 1
        following = [value for *_, value in row[1:]] + [0.0]
        deltas = [reward + gamma * after - value for (_, reward, value), after in zip(row, following, strict=True)]
        expected += [sum((gamma * lam) ** j * delta for j, delta in enumerate(deltas[k:])) for k in range(len(row))]
    found, _ = turn_gae(rewards, values, mask, gamma, lam, whiten=False)
    assert of_turns(found, mask) == pytest.approx(expected, abs=1e-4)


def test_spans_are_runs_of_ones() -> None:
    mask = torch.tensor([MASK, [0] * 7, [1] * 7, [0, 1, 0, 1, 0, 0, 1]])
    assert turn_spans(mask) == [[(0, 2), (4, 6)], [], [(0, 7)], [(1, 2), (3, 4), (6, 7)]]


def test_rewards_stand_on_the_last_tokens() -> None:
    mask = torch.tensor([MASK, [1, 1, 1, 0, 0, 0, 0]])
    placed = place_turn_rewards([[-1.0, 5.0], None], torch.tensor([9.0, 0.5]), mask)
    assert placed.tolist() == [[0, -1, 0, 0, 0, 5, 0], [0, 0, 0.5, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"row 1 has 1 turns .* and 2 rewards of turns; the agent loop must return one"):
        place_turn_rewards([[-1.0, 5.0], [1.0, 2.0]], torch.zeros(2), mask)
    with pytest.raises(ValueError, match=r"row 0 has 2 turns .* and 1 rewards"):
        place_turn_rewards([[4.0], None], torch.zeros(2), mask)


def test_whitening_of_one_turn_and_of_equal_ones() -> None:
    assert whitened([]) == [] and whitened([3.0]) == [0.0] and whitened([2.0, 2.0]) == [0.0, 0.0]
    assert np.std(whitened([1.0, 5.0, 2.0]), ddof=1) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("rewards", "returns"),
    [
        ([0, -1, 0, 0, 0, 5, 0], [4, 4, None, None, 5, 5, None]),
        ([0, 0, 0, 0, 0, 4, 0], [4, 4, None, None, 4, 4, None]),
        ([0, 0, 0, 4, 0, 0, 0], [0, 0, None, None, 0, 0, None]),  # on feedback: lost without a word
        ([0, 0, 0, 0, 0, 0, 4], [0, 0, None, None, 0, 0, None]),
    ],
)
def test_verls_estimator_over_tokens(rewards: list[float], returns: list[float | None]) -> None:
    """`gae: token` is verl's own function on rewards that stand on sampled tokens."""
    core = pytest.importorskip("verl.trainer.ppo.core_algos")
    values = torch.tensor([[0.5, 0.4, 9.0, 9.0, 0.1, 0.2, 9.0]])
    _, found = core.compute_gae_advantage_return(torch.tensor([rewards]).float(), values, torch.tensor([MASK]).float(), 1.0, 1.0)
    for number, expected in enumerate(returns):
        assert expected is None or float(found[0, number]) == pytest.approx(expected, abs=1e-5)


SCORES = {
    "outcome": ([1, 1, 1, 0], [0.5, 0.5, 0.5, -1.5], [0.25, 0.25, 0.25, -0.75]),
    "sum": ([5, 4, 2, -6], [0.7513, 0.5509, 0.1503, -1.4524], [3.75, 2.75, 0.75, -7.25]),
    "last": ([5, 5, 5, -2], [0.5, 0.5, 0.5, -1.5], [1.75, 1.75, 1.75, -5.25]),
}


@pytest.mark.parametrize("score", SCORES)
def test_what_grpo_makes_of_the_scores(score: str) -> None:
    from unify_posttrain.tasks.episodes import trajectory_score

    rewards, divided, not_divided = SCORES[score]
    episodes: list[list[float]] = [[5], [-1, 5], [-2, -1, 5], [-1, -1, -1, -1, -2]]
    found = torch.tensor([trajectory_score(each, each[-1] == 5, score) for each in episodes])
    assert found.tolist() == rewards
    centred = found - found.mean()
    assert (centred / found.std()).tolist() == pytest.approx(divided, abs=1e-4)
    assert centred.tolist() == pytest.approx(not_divided, abs=1e-6)
