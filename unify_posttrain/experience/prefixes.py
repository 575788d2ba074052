"""Prefixes: which part of a demonstration a row is given before the policy continues it (LUFFY, arXiv 2504.14945).

A ratio of 1 is the whole demonstration, with nothing to generate; 0 is a plain rollout. The draws are a function of (seed, step,
row_id) alone, so neither a resume nor the number of workers changes them. Simplified against the released code: its
`linear_variance` has no effect there and is unknown here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

import numpy as np

STRATEGIES = ("random", "reverse_linear", "linear_max", "linear", "cosine", "fixed")
WINDOWS = 10


@dataclass(frozen=True)
class PrefixSchedule:
    """Ratio q of a demonstration's tokens that each prefixed row of a group begins with.

    With M = linear_max_ratio, i = 0..9 the tenth of `steps` that the 0-based step lies in, and j the row:

    random: U(min_ratio, max_ratio). The published runs have both at 1.
    reverse_linear: U(0, (i+1)·M/10), prefixes grow.
    linear_max: U(0, (10-i)·M/10), prefixes shrink.
    linear: M·(1 - min(step/steps, 1)), no draw.
    cosine: from max_ratio down to min_ratio along half a cosine, no draw (Prefix-RFT, arXiv 2507.01679).
    fixed: evenly spaced over the rows from min_ratio to max_ratio, no draw.

    Attributes:
        strategy: one of `STRATEGIES`.
        n_prefix: rows of a group that carry a prefix; -1 means all.
        min_ratio, max_ratio: ends of the interval of random and fixed, in [0, 1].
        steps: length of the schedule in training steps.
        linear_max_ratio: M, in [0, 1].
        share: one draw for all rows of a group instead of one each.
        seed: `fusion.seed`.

    Raises:
        ValueError: a setting outside its range, or `share` with fixed; names the key.
    """

    strategy: str
    n_prefix: int
    min_ratio: float
    max_ratio: float
    steps: int
    linear_max_ratio: float
    share: bool
    seed: int

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"fusion.prefix.strategy={self.strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}")
        n = self.n_prefix
        if not isinstance(n, int) or isinstance(n, bool) or (n < 1 and n != -1):
            raise ValueError(f"fusion.prefix.n_prefix={n!r} must be a number of rows of at least 1, or -1 for all rows of a group")
        ratios = {"min_ratio": self.min_ratio, "max_ratio": self.max_ratio, "linear_max_ratio": self.linear_max_ratio}
        for name, value in ratios.items():
            if not 0 <= value <= 1:
                raise ValueError(f"fusion.prefix.{name}={value} must lie in [0, 1]: it is a share of the demonstration")
        if self.min_ratio > self.max_ratio:
            raise ValueError(
                f"fusion.prefix.min_ratio={self.min_ratio} exceeds fusion.prefix.max_ratio={self.max_ratio}: exchange the two"
            )
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ValueError(f"fusion.prefix.steps={self.steps!r} must be an integer of at least 1 training step")
        if not isinstance(self.share, bool):
            raise ValueError(f"fusion.prefix.share={self.share!r} must be true or false")
        if self.share and self.strategy == "fixed":
            raise ValueError(
                "fusion.prefix.share=true contradicts fusion.prefix.strategy=fixed, which gives every row its own ratio; "
                "set share=false or choose another strategy"
            )

    @property
    def whole(self) -> bool:
        """Whether every prefix is the whole demonstration, so that nothing is generated after it."""
        return self.min_ratio == self.max_ratio == 1 and self.strategy in ("random", "fixed")

    def carriers(self, group_size: int) -> int:
        """Rows of a group of n that carry a prefix."""
        return group_size if self.n_prefix == -1 else self.n_prefix

    def describe(self) -> str:
        """How much of the demonstration, in words."""
        if self.strategy in ("random", "fixed", "cosine"):
            ends = (self.max_ratio, self.min_ratio) if self.strategy == "cosine" else (self.min_ratio, self.max_ratio)
            return f"{ends[0]:.0%} to {ends[1]:.0%} ({self.strategy})"
        return f"up to {self.linear_max_ratio:.0%} ({self.strategy})"

    def upper(self, step: int) -> float:
        """Largest ratio at a step counted from 0, which is global_step - 1.

        Raises:
            ValueError: a negative step.
        """
        if step < 0:
            raise ValueError(f"step={step}: prefixes are drawn for training steps, whose global_step is counted from 1")
        if self.strategy in ("random", "fixed"):
            return float(self.max_ratio)
        if self.strategy == "linear":
            return self.linear_max_ratio * (1 - min(step / self.steps, 1))
        if self.strategy == "cosine":
            return self.min_ratio + (self.max_ratio - self.min_ratio) * (1 + cos(pi * min(step / self.steps, 1))) / 2
        # A window holds both its ends and the first one that holds the step counts: ceil(10·step/steps) - 1, in integers.
        window = min(max(0, -(-WINDOWS * step // self.steps) - 1), WINDOWS - 1)
        tenths = window + 1 if self.strategy == "reverse_linear" else WINDOWS - window
        return tenths * self.linear_max_ratio / WINDOWS

    def ratios(self, row_id: int, global_step: int, group_size: int) -> tuple[float, ...]:
        """Ratio of each prefixed row of a prompt's group.

        Args:
            row_id: position of the prompt in the concatenated training files.
            global_step: training step, counted from 1.
            group_size: n, rows in the group.

        Returns:
            n_prefix numbers in [0, 1], or n of them if n_prefix is -1. Row j's number does not depend on how many rows there are
            (except in fixed).

        Raises:
            ValueError: more prefixed rows than the group has, or a step before the first.
        """
        if self.n_prefix > group_size:
            raise ValueError(
                f"fusion.prefix.n_prefix={self.n_prefix} exceeds actor_rollout_ref.rollout.n={group_size}; set -1 for all rows"
            )
        rows = self.carriers(group_size)
        upper = self.upper(global_step - 1)
        if self.strategy in ("linear", "cosine"):
            return (upper,) * rows
        if self.strategy == "fixed":
            gaps = max(1, rows - 1)
            spaced = [self.min_ratio + j * (self.max_ratio - self.min_ratio) / gaps for j in range(rows)]
            # Rounding in the last one could cost a whole demonstration its EOS.
            return (*spaced[:-1], upper) if rows > 1 else tuple(spaced)
        lower = self.min_ratio if self.strategy == "random" else 0.0
        draws = np.random.default_rng([self.seed, global_step, row_id]).random(1 if self.share else rows)
        drawn = tuple(float(lower + (upper - lower) * u) for u in draws)
        return drawn * rows if self.share else drawn

    def prefix_lengths(self, row_id: int, global_step: int, group_size: int, target_length: int) -> tuple[int, ...]:
        """Tokens in each row's prefix, int(target_length·q); `target_length` counts the EOS. All else as in `ratios`."""
        return tuple(int(target_length * ratio) for ratio in self.ratios(row_id, global_step, group_size))
