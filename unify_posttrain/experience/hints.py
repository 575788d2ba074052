"""Hints: how many sentences of a worked solution a prompt's rollouts are given to start from, at a training step.

UFT (arXiv 2505.16984) cuts the solution into a few buckets of whole sentences and draws the number of buckets from a binomial
whose probability falls along a cosine. The draw is a function of (seed, step, row_id) alone: all rollouts of a prompt share one
hint, and neither a resume nor the number of workers changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import cos, pi

import numpy as np

MODES = ("uft", "stage", "r3", "none")


def hint_probability(step: int, hint_steps: int, low: float, high: float) -> float:
    """p(t) = low + (high - low)·(1 + cos(π·t / hint_steps)) / 2 up to hint_steps, 0 beyond (arXiv 2505.16984).

    Args:
        step: t, training steps counted from 1.
        hint_steps: T_hint in training steps, at least 1.
        low, high: probabilities at t = T_hint and at t = 0.

    Raises:
        ValueError: a step before the first.

    >>> hint_probability(300, hint_steps=300, low=0.05, high=0.95)
    0.05
    """
    if step < 1:
        raise ValueError(f"step={step}: hints are drawn for training steps, which are counted from 1")
    if step > hint_steps:
        return 0.0
    return low + (high - low) * (1 + cos(pi * step / hint_steps)) / 2


def cut_points(sentences: int, buckets: int) -> list[int]:
    """Sentences in a hint of 0, 1, …, num buckets, num = min(buckets, sentences): evenly spread, ties to the even number.

    Args:
        sentences: length of the whole solution, in sentences.
        buckets: most buckets that a solution is cut into.

    Returns:
        num + 1 rising integers from 0 to `sentences`; [0] for an empty solution.

    >>> cut_points(8, 5)
    [0, 2, 3, 5, 6, 8]
    """
    num = min(buckets, sentences)
    # Fractions: j·len/num in floating point can fall to the wrong side of a tie.
    return [0, *(round(Fraction(j * sentences, num)) for j in range(1, num + 1))]


@dataclass(frozen=True)
class HintSchedule:
    """How long hints are, over training.

    With num = min(buckets, sentences) buckets in a prompt's solution and t the training step, the hint has this many of them:

    uft: Binomial(num, p(t)), p as in `hint_probability`; none after hint_steps (arXiv 2505.16984).
    stage: all of them at first, one less every hint_steps // (num + 1) steps.
    r3: uniform over 0..num, at every step.
    none: none.

    Attributes:
        mode: one of `MODES`.
        buckets: most buckets that a solution is cut into.
        hint_steps: T_hint in training steps.
        p_low, p_high: probabilities at the end and at the beginning of the hinted steps.
        seed: `fusion.seed`.

    Raises:
        ValueError: a setting outside its range; names the key.
    """

    mode: str
    buckets: int
    hint_steps: int
    p_low: float
    p_high: float
    seed: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"fusion.uft.hint_mode={self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        for name, value in (("buckets", self.buckets), ("T_hint", self.hint_steps)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"fusion.uft.{name}={value!r} must be an integer of at least 1; without hints: fusion.uft.hint_mode=none"
                )
        for name, probability in (("p_low", self.p_low), ("p_high", self.p_high)):
            if not 0 <= probability <= 1:
                raise ValueError(f"fusion.uft.{name}={probability} must lie in [0, 1]: it is a probability")
        if self.p_low > self.p_high:
            raise ValueError(f"fusion.uft.p_low={self.p_low} exceeds fusion.uft.p_high={self.p_high}: hints fade, exchange the two")

    def bucket(self, row_id: int, step: int, sentences: int) -> int:
        """Number of buckets in a prompt's hint, an index into `cut_points(sentences, buckets)`.

        Args:
            row_id: position of the prompt in the concatenated training files.
            step: training step, counted from 1.
            sentences: length of the prompt's whole solution, in sentences; 0 if it has none.

        Raises:
            ValueError: a step before the first (uft).
        """
        num = min(self.buckets, sentences)
        if self.mode == "none" or num == 0:
            return 0
        if self.mode == "stage":
            return max(0, num - step // max(1, self.hint_steps // (num + 1)))
        draws = np.random.default_rng([self.seed, step, row_id])
        if self.mode == "r3":
            return int(draws.integers(num + 1))
        return int((draws.random(num) < hint_probability(step, self.hint_steps, self.p_low, self.p_high)).sum())

    def sentences(self, row_id: int, step: int, number_of_sentences: int) -> int:
        """Number of sentences in a prompt's hint, before it is fitted into the response; arguments as in `bucket`."""
        return cut_points(number_of_sentences, self.buckets)[self.bucket(row_id, step, number_of_sentences)]


def fit_hint(bucket: int, cuts: Sequence[int], tokens: Callable[[int], list[int]], room: int) -> tuple[list[int], int]:
    """Tokens of the longest hint that fits, moving down by whole buckets; a sentence is never cut.

    Args:
        bucket: the number of buckets drawn.
        cuts: `cut_points` of the solution.
        tokens: token ids of the hint made of the first so many sentences; not asked for the empty hint.
        room: most tokens that a hint may have: data.max_response_length - fusion.uft.max_new_tokens.

    Returns:
        Token ids, and how many buckets the hint was moved down (0 if it fits as drawn).

    Raises:
        ValueError: room is negative.
    """
    if room < 0:
        raise ValueError(
            f"fusion.uft.max_new_tokens is {-room} tokens more than data.max_response_length, which holds hint and continuation; "
            "lower the one or raise the other"
        )
    for fitting in range(bucket, 0, -1):
        ids = tokens(cuts[fitting])
        if len(ids) <= room:
            return ids, bucket - fitting
    return [], bucket
