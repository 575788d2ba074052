"""Means and confidence intervals over seeds.

With seeds x_1..x_n, mean m and unbiased standard deviation s = sqrt(sum (x_i - m)² / (n - 1)), the half-width of the
interval is

    t * s / sqrt(n),    t the (1 + confidence)/2 quantile of Student's t distribution with n - 1 degrees of freedom

(n = 3, 95 %: t = 4.303). One seed has no interval. The comparison with a baseline is the same formula on the differences
x_i - b_i of runs with equal seeds: what a seed does to both (order of the data) cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """mean ± half_width over n values; half_width is None for a single value, mean as well for none."""

    mean: float | None
    half_width: float | None
    n: int


def t_interval(values: Sequence[float | None], confidence: float) -> Interval:
    """Mean and half-width over the values that were measured (None and NaN are not)."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    n = len(known)
    if n == 0:
        return Interval(None, None, 0)
    mean = sum(known) / n
    if n == 1:
        return Interval(mean, None, 1)
    from scipy.stats import t  # a second of imports, for those who ask for an interval

    deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / (n - 1))
    return Interval(mean, float(t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n), n)


def paired_difference(values: Mapping[int, float | None], baseline: Mapping[int, float | None], confidence: float) -> Interval:
    """Interval of value - baseline over the seeds that both have measured."""
    differences = [
        value - reference for seed, value in values.items() if value is not None and (reference := baseline.get(seed)) is not None
    ]
    return t_interval(differences, confidence)


def wilson(successes: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share, as fractions.

    Args:
        successes: in 0..n; means of several samples per problem may be fractions.
        n: at least 1.
        confidence: in (0, 1).

    Raises:
        ValueError: numbers outside of these.

    >>> [round(100 * end, 2) for end in wilson(41, 234, 0.95)]
    [13.19, 22.91]
    """
    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(
            f"wilson: {successes} of {n} at confidence {confidence}; give 0 <= successes <= n, n >= 1 and 0 < confidence < 1"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, square = successes / n, z * z / n
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)
