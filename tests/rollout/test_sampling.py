"""SeededSampler on fixed logits: what it draws, how often, how it reports probabilities, when it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unify_posttrain.rollout.sampling import SamplingParams, SeededSampler

CPU = torch.device("cpu")
EOS = 5
PROBS = torch.tensor([0.32, 0.26, 0.18, 0.12, 0.08, 0.04])
LOGITS = PROBS.log() + 3.0  # a constant must not matter


def params(max_tokens: int = 8, **request: Any) -> SamplingParams:
    return SamplingParams.from_request(request, max_tokens)


def draw(requests: list[SamplingParams], steps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and log-probs, (B, steps) each, for given logits (V,) or (B, V) per step."""
    sampler, rows = SeededSampler(requests, CPU), torch.arange(len(requests))
    drawn = [sampler.draw(logits.expand(len(requests), -1).clone(), rows, step) for step, logits in enumerate(steps)]
    tokens, log_probs = zip(*drawn, strict=True)
    return torch.stack(tokens, dim=1), torch.stack(log_probs, dim=1)


def truncated(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The distribution by definition: temper, keep the k largest, then the fewest that hold mass p, renormalise."""
    p = np.exp(np.log(PROBS.double().numpy()) / temperature)
    p /= p.sum()
    if top_k > 0:
        p[top_k:] = 0  # PROBS is sorted
        p /= p.sum()
    kept = int(np.searchsorted(np.cumsum(p), top_p - 1e-9)) + 1
    p[kept:] = 0
    return p / p.sum()


DISTRIBUTIONS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_p": 0.7},  # .32 + .26 < .7: the third crosses the mass and stays
    {"top_p": 0.57},
    {"temperature": 1.5, "top_k": 4, "top_p": 0.8},
    {"top_k": 1},
    {"top_k": 100},
    {"top_k": 0},
]


def reference(request: dict[str, Any]) -> np.ndarray:
    return truncated(request.get("temperature", 1.0), request.get("top_k", -1), request.get("top_p", 1.0))


@pytest.mark.parametrize("request_", DISTRIBUTIONS, ids=str)
def test_frequencies(request_: dict[str, Any]) -> None:
    n = 6000
    tokens, _ = draw([params(seed=seed, **request_) for seed in range(n)], [LOGITS])
    counts, p = np.bincount(tokens[:, 0], minlength=6), reference(request_)
    assert not counts[p == 0].any(), "a token outside the truncation was drawn"
    possible = p > 0
    chi_square = ((counts[possible] - n * p[possible]) ** 2 / (n * p[possible])).sum()
    # 99.9 % quantiles of chi-square with 0..5 degrees of freedom; the seeds are fixed, so this does not flicker
    assert chi_square <= [1e-9, 10.83, 13.82, 16.27, 18.47, 20.52][possible.sum() - 1]


@pytest.mark.parametrize("request_", DISTRIBUTIONS, ids=str)
def test_log_probs_are_those_of_the_distribution_drawn_from(request_: dict[str, Any]) -> None:
    tokens, log_probs = draw([params(seed=seed, **request_) for seed in range(200)], [LOGITS, LOGITS])
    expected = torch.from_numpy(np.log(reference(request_)[tokens.numpy()])).float()
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)


def test_rows_have_their_own_parameters() -> None:
    requests = [params(seed=3, **request) for request in DISTRIBUTIONS]
    together = draw(requests, [LOGITS] * 4)
    for row, request in enumerate(requests):
        alone = draw([request], [LOGITS] * 4)
        assert torch.equal(together[0][row], alone[0][0])
        torch.testing.assert_close(together[1][row], alone[1][0], atol=1e-6, rtol=0)


def test_a_uniform_of_zero_draws_no_token_without_mass() -> None:
    """Tokens in front of the first one that is kept have cumulative mass 0: the number 0 must pass them by."""
    sampler = SeededSampler([params(top_k=2, seed=0)], CPU)
    sampler.uniforms.zero_()
    tokens, log_probs = sampler.draw(LOGITS.flip(0).unsqueeze(0), torch.tensor([0]), 0)
    assert tokens.tolist() == [4]  # the two most likely stand last: 4 and 5
    assert torch.isfinite(log_probs).all()


def test_greedy_takes_the_most_likely_and_reports_its_probability() -> None:
    steps = [LOGITS, LOGITS.flip(0)]
    tokens, log_probs = draw([params(temperature=0, seed=1), params(temperature=0)], steps)
    assert tokens.tolist() == [[0, 5], [0, 5]]
    torch.testing.assert_close(log_probs, PROBS[0].log().expand(2, 2), atol=1e-6, rtol=0)


# --- seeds -----------------------------------------------------------------------------------------------------------


def random_steps(rows: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 50, generator=generator) for _ in range(8)]


def test_same_seed_same_tokens() -> None:
    steps = [logits[:1] for logits in random_steps(1)]
    first, again, other = (draw([params(seed=seed)], steps) for seed in (11, 11, 12))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_a_request_does_not_depend_on_its_batch() -> None:
    """Other rows, their order, their longer limits: the tokens of a request stay."""
    steps = random_steps(5)
    requests = [params(seed=row, max_tokens=8 if row % 2 else 20, temperature=0.5 + row / 4) for row in range(5)]
    tokens, log_probs = draw(requests, steps)
    order = [3, 0, 4]
    fewer_tokens, fewer_log_probs = draw([requests[row] for row in order], [logits[order] for logits in steps])
    assert torch.equal(fewer_tokens, tokens[order])
    torch.testing.assert_close(fewer_log_probs, log_probs[order], atol=1e-6, rtol=0)


def test_rows_that_are_left_draw_what_they_would_have_drawn() -> None:
    """A sampler is asked for any rows of its batch, in any order."""
    requests = [params(seed=row, temperature=0.5 * row, top_k=row, top_p=1 - row / 10) for row in range(5)]
    (logits,) = random_steps(5)[:1]
    sampler, left = SeededSampler(requests, CPU), torch.tensor([4, 1, 3])
    whole = sampler.draw(logits, torch.arange(5), 3)
    tokens, log_probs = sampler.draw(logits[left], left, 3)
    assert torch.equal(tokens, whole[0][left]) and torch.equal(log_probs, whole[1][left])


def test_positions_have_numbers_of_their_own() -> None:
    uniform = torch.zeros(1000)
    tokens, _ = draw([params(seed=5)], [uniform] * 8)
    assert len(set(tokens[0].tolist())) == 8


def test_without_seed_draws_differ() -> None:
    tokens, _ = draw([params(), params()], [torch.zeros(1000)] * 8)
    assert not torch.equal(tokens[0], tokens[1])


# --- length ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "limit"),
    [({}, 64), ({"max_tokens": 10}, 10), ({"max_new_tokens": 12}, 12), ({"max_tokens": 1000}, 64)],
)
def test_limit_of_the_request_never_exceeds_the_engines(request_: dict[str, int], limit: int) -> None:
    assert SamplingParams.from_request(request_, max_tokens=64).max_tokens == limit


# --- requests --------------------------------------------------------------------------------------------------------


def test_defaults_and_keys_that_need_no_action() -> None:
    request = {
        "logprobs": True,
        "include_stop_str_in_output": True,
        "repetition_penalty": 1.0,
        "stop": None,
        "bad_words": [],
    }
    before = dict(request)
    assert SamplingParams.from_request(request, 9) == SamplingParams(1.0, 1.0, -1, 9, None)
    assert request == before  # verl shares one dictionary between requests


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"min_p": 0.1, "stop": ["x"]}, r"\['min_p', 'stop'\].*rollout\.name=vllm"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"temperature": -0.5}, r"temperature=-0\.5"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.5}, r"top_p=1\.5"),
    ],
)
def test_what_is_not_implemented_is_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams.from_request(request_, 8)
