"""Advantages that verl's estimators cannot know: of demonstrations trained alone, and of groups with an on-policy baseline.

verl computes Â on the mixed groups (a demonstration shares its prompt's uid, so it counts in mean and deviation). What differs
from that is returned here as one value per row; NaN leaves verl's value in place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from unify_posttrain.experience.gate import BatchPlan
from unify_posttrain.experience.mixer import DEMONSTRATION, PADDING, ROLLOUT

BASELINES = ("group", "on")
OFF_ADVANTAGES = ("reward", "group")
EPSILON = 1e-6  # added to the deviation, as in verl's GRPO


def override_advantages(
    plan: BatchPlan,
    kinds: np.ndarray,
    uids: np.ndarray,
    scores: np.ndarray,
    dropped: Mapping[str, np.ndarray],
    *,
    baseline: str = "group",
    off_advantage: str = "reward",
    normalise_by_std: bool = False,
    prefixed: np.ndarray | None = None,
) -> np.ndarray:
    """Row advantages that replace verl's.

    Args:
        plan: the gate plan.
        kinds, uids, scores: (B,) of the mixed batch.
        dropped: uid -> scores of rollouts that the gate dropped.
        baseline: `group` (verl's: mean and deviation over the mixed group) or `on` (of its on-policy rows, applied to all; a
            deviation of 0 counts as 1, a group without on-policy rows has mean 0 and deviation 1).
        off_advantage: of a demonstration in the middle zone, whose rollouts are dropped: `reward` (its score, the
            group-of-one rule) or `group` (its score minus the mean over its n rollouts and itself).
        normalise_by_std: divide by the deviation (`algorithm.norm_adv_by_std_in_grpo`).
        prefixed: (B,) bool, rollouts that begin with trained demonstration tokens: not on-policy rows to the `on` baseline.

    Returns:
        (B,) float64; NaN where verl's advantage stands. Padding and demonstrations without an off-policy term get 0.

    Raises:
        ValueError: unknown baseline or off_advantage.
    """
    if baseline not in BASELINES:
        raise ValueError(f"fusion.baseline={baseline!r}; choose one of {', '.join(BASELINES)}")
    if off_advantage not in OFF_ADVANTAGES:
        raise ValueError(f"fusion.hpt.off_advantage={off_advantage!r}; choose one of {', '.join(OFF_ADVANTAGES)}")
    groups = {group.uid: group for group in plan}
    on_scores: dict[str, list[float]] = defaultdict(list)
    prefixed = np.zeros(len(kinds), dtype=bool) if prefixed is None else prefixed
    for uid, kind, score, with_prefix in zip(uids, kinds, scores, prefixed, strict=True):
        if kind == ROLLOUT and not with_prefix:
            on_scores[uid].append(float(score))
    values = np.full(len(kinds), np.nan)
    for row, (uid, kind, score) in enumerate(zip(uids, kinds, scores, strict=True)):
        if kind == PADDING:
            values[row] = 0.0
            continue
        group = groups[uid]
        if kind == DEMONSTRATION and not group.off_weight:
            values[row] = 0.0
        elif kind == DEMONSTRATION and not group.kept:
            others = dropped.get(uid, np.zeros(0))
            values[row] = score if off_advantage == "reward" else score - np.mean([score, *others])
        elif baseline == "on":
            mean, deviation = _statistics(on_scores[uid])
            values[row] = (score - mean) / (deviation + EPSILON) if normalise_by_std else score - mean
    return values


def _statistics(scores: list[float]) -> tuple[float, float]:
    """Mean and unbiased deviation; (0, 1) without rows, and as in verl for a single one; deviation 0 counts as 1."""
    if len(scores) < 2:
        return 0.0, 1.0
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) or 1.0
