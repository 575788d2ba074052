"""The numbers of an evaluation: avg@k, pass@k, maj@k, intervals over problems, tests between models.

What is drawn again, or flipped in sign, is always a whole problem with all its samples: the samples of one problem are not
independent of each other, and the question is how the model does on other problems, not on these ones again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

BATCH_CELLS = 20_000_000  # numbers drawn at once, a matter of memory alone


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is correct (arXiv 2107.03374, eq. 1): 1 - C(n-c, k)/C(n, k).

    In whole numbers up to the one division, so that neither large binomials nor small chances lose digits.

    Args:
        n: samples of the problem.
        c: correct ones among them.
        k: samples that may be tried.

    Raises:
        ValueError: unless 1 <= k <= n and 0 <= c <= n, all whole numbers.

    >>> pass_at_k(8, 2, 1)
    0.25
    """
    n, c, k = (_whole(name, value) for name, value in (("n", n), ("c", c), ("k", k)))
    if not 1 <= k <= n:
        raise ValueError(f"pass@k: k={k} must lie in 1..n={n}; take more samples or a smaller k")
    if not 0 <= c <= n:
        raise ValueError(f"pass@k: c={c} correct samples must lie in 0..n={n}")
    every = comb(n, k)
    return (every - comb(n - c, k)) / every


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f"pass@k: {name}={value!r} must be a whole number")
    return int(value)


def avg_at_k(correct: Sequence[float]) -> float:
    """Mean over the k samples of one problem.

    Raises:
        ValueError: no sample.
    """
    if not len(correct):
        raise ValueError("avg@k: a problem without samples has no mean; leave it out")
    return sum(float(value) for value in correct) / len(correct)


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer given most often; of several given equally often the one that occurs first. Samples without an answer (None or
    "") do not vote; None if nobody votes."""
    votes = Counter(answer for answer in answers if answer)
    # Counter keeps the order of first occurrence, and max takes the first of equals.
    return max(votes, key=lambda answer: votes[answer]) if votes else None


def maj_at_k(answers: Sequence[str | None], correct: Sequence[float]) -> float:
    """Whether the majority's answer is correct: 1 or 0; 0 if there is none.

    Args:
        answers: (k,) canonical answers of one problem.
        correct: (k,) whether each sample is correct; the first sample with the majority's answer decides.

    Raises:
        ValueError: lengths differ.
    """
    if len(answers) != len(correct):
        raise ValueError(f"maj@k: {len(answers)} answers and {len(correct)} verdicts; give one of each per sample")
    winner = majority(answers)
    return 0.0 if winner is None else float(correct[list(answers).index(winner)])


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, … below n, and n: the k of a table of pass@k."""
    return [*(1 << i for i in range(n.bit_length()) if 1 << i < n), n]


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; without an interval (None) where a source has fewer than two problems."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Bootstrap:
    """How intervals and tests are made.

    Attributes:
        confidence: of the intervals, in (0, 1).
        resamples: draws; for the sign-flip test at most so many, all 2^P of them if these are fewer.
        seed: of the draws.
    """

    confidence: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"statistics.confidence={self.confidence} must lie between 0 and 1, for example 0.95")
        if self.resamples < 1:
            raise ValueError(f"statistics.resamples={self.resamples} must be at least 1")


def estimate(groups: Sequence[Sequence[float]], how: Bootstrap) -> Estimate:
    """Mean over groups of the groups' means, with a percentile bootstrap interval; problems are drawn within each group.

    Args:
        groups: one sequence of values per source, one value per problem; a single source is a list of one.

    Raises:
        ValueError: no group, or an empty one.
    """
    arrays = _arrays(groups)
    mean = _mean_of_means(*arrays, axis=-1)
    if any(len(array) < 2 for array in arrays):
        return Estimate(float(mean), None, None)
    from scipy.stats import bootstrap  # a second of imports, for those who ask for an interval

    interval = bootstrap(
        arrays,
        _mean_of_means,
        n_resamples=how.resamples,
        batch=_batch(arrays),
        vectorized=True,
        confidence_level=how.confidence,
        method="percentile",
        rng=np.random.default_rng(how.seed),
    ).confidence_interval
    return Estimate(float(mean), float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Comparison:
    """A model against a baseline on the same problems: difference of the means, its interval, and the chance of a difference at
    least as large (in either direction) if the two were exchangeable on every problem."""

    difference: Estimate
    p_value: float
    problems: int


def compare(groups: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], how: Bootstrap) -> Comparison:
    """Paired bootstrap interval and sign-flip permutation test of the difference of the means over groups.

    Args:
        groups, baseline: as in :func:`estimate`, entry by entry the same problems.

    Raises:
        ValueError: the two do not have the same problems.
    """
    ours, theirs = _arrays(groups), _arrays(baseline)
    if [len(array) for array in ours] != [len(array) for array in theirs]:
        raise ValueError("a paired test needs the same problems of both models; evaluate both on the same files and limits")
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    weighted = np.concatenate([array / (len(array) * len(differences)) for array in differences])
    return Comparison(estimate(differences, how), sign_flip_p_value(weighted, how), len(weighted))


def sign_flip_p_value(differences: Sequence[float], how: Bootstrap) -> float:
    """Two-sided p value of the sum of `differences` when the sign of each is a coin toss; exact if 2^P <= resamples."""
    # A difference of zero has no sign to flip; without them the exact test is reached more often.
    nonzero = np.asarray([value for value in differences if value != 0], dtype=float)
    if not len(nonzero):
        return 1.0
    if len(nonzero) == 1:
        return 1.0  # both signs are as extreme
    from scipy.stats import permutation_test

    return float(
        permutation_test(
            (nonzero,),
            lambda values, axis: values.sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=how.resamples,
            batch=_batch([nonzero]),
            alternative="two-sided",
            rng=np.random.default_rng(how.seed),
        ).pvalue
    )


def _arrays(groups: Sequence[Sequence[float]]) -> list[np.ndarray]:
    arrays = [np.asarray(group, dtype=float) for group in groups]
    if not arrays or not all(len(array) for array in arrays):
        raise ValueError("statistics: a source without problems has no mean; leave it out")
    return arrays


def _mean_of_means(*arrays: np.ndarray, axis: int) -> np.ndarray:
    return sum(array.mean(axis=axis) for array in arrays) / len(arrays)


def _batch(arrays: Sequence[np.ndarray]) -> int:
    return max(1, BATCH_CELLS // sum(len(array) for array in arrays))
