"""Was something forgotten in fine-tuning, and did reinforcement bring it back? Pure functions of shares, and of scores per problem.

    peak         the highest out-of-distribution share of a fine-tuning run, at the earliest of equals
    forgotten    peak - end
    recovery     (end of the RL run - end of fine-tuning) / forgotten; null if nothing was forgotten
    gain         at a step: end of the RL run that started there - fine-tuning there
    window       the longest run of consecutive starts with a gain above 0: a description, not a test

The highest of many noisy checkpoints is too high for the same reason for which it was chosen. With `select: half` the peak and
the best start are chosen on one half of the problems, and every number comes from the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unify_posttrain.measures.intervals import wilson
from unify_posttrain.measures.statistics import Bootstrap, compare

Shares = Mapping[int, float]  # step -> share
Scores = Mapping[int, float]  # problem -> mean over its samples
Curve = Mapping[int, Scores]  # step -> scores
SELECTS = ("half", "none")


@dataclass(frozen=True)
class Summary:
    """The numbers of the module's docstring.

    Attributes:
        peak_step, end_step: of the fine-tuning run.
        peak, end, forgotten: shares.
        recovery: start of an RL run -> recovery, None where nothing was forgotten.
        gains: start -> gain, where fine-tuning has a checkpoint at the start.
        window: first and last start of the longest run of gains; None without one.
    """

    peak_step: int
    end_step: int
    peak: float
    end: float
    forgotten: float
    recovery: dict[int, float | None]
    gains: dict[int, float]
    window: tuple[int, int] | None


def peak_of(shares: Shares) -> int:
    """The step with the highest share; the earliest of equals."""
    return max(sorted(shares), key=lambda step: shares[step])


def window_of(gains: Mapping[int, float]) -> tuple[int, int] | None:
    """First and last step of the longest run of consecutive gains above 0; the earliest of equally long ones."""
    best: list[int] = []
    current: list[int] = []
    for step in sorted(gains):
        current = [*current, step] if gains[step] > 0 else []
        if len(current) > len(best):
            best = current
    return (best[0], best[-1]) if best else None


def summarise(sft: Shares, rl: Shares, end: int | None = None, peak: int | None = None) -> Summary:
    """Everything that follows from shares alone, in whatever unit they have.

    Args:
        sft: the fine-tuning run, by step.
        rl: the end of the RL run that started at a step of it.
        end: last step that counts as fine-tuning; None: the last one.
        peak: chosen elsewhere; None: the highest of `sft` up to `end`.

    Raises:
        ValueError: no checkpoint, or none at `end`.
    """
    if not sft:
        raise ValueError("sft: no checkpoint was evaluated; evaluate the run with steps=all")
    end = max(sft) if end is None else end
    if end not in sft:
        raise ValueError(f"end={end} is no evaluated checkpoint; choose one of {', '.join(map(str, sorted(sft)))}")
    peak = peak_of({step: share for step, share in sft.items() if step <= end}) if peak is None else peak
    forgotten = sft[peak] - sft[end]
    gains = {start: rl[start] - sft[start] for start in sorted(rl) if start in sft}
    recovery = {start: (rl[start] - sft[end]) / forgotten if forgotten > 0 else None for start in sorted(rl)}
    return Summary(peak, end, sft[peak], sft[end], forgotten, recovery, gains, window_of(gains))


def halves(problems: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """(chosen on, reported on): a seeded split of the problems; the second is the larger one of an odd number."""
    order = np.random.default_rng(seed).permutation(sorted(problems))
    cut = len(order) // 2
    return sorted(map(int, order[:cut])), sorted(map(int, order[cut:]))


def shared(curves: Sequence[Curve]) -> list[int]:
    """The problems that every checkpoint of every curve has: differences are paired.

    Raises:
        ValueError: there are fewer than two.
    """
    sets = [set(scores) for curve in curves for scores in curve.values()]
    common = sorted(set.intersection(*sets)) if sets else []
    if len(common) < 2:
        raise ValueError(
            "the checkpoints have fewer than two problems in common; evaluate all of them on the same files and limits"
        )
    return common


def shares_on(curve: Curve, problems: Sequence[int]) -> dict[int, float]:
    """Step -> mean over these problems."""
    return {step: sum(scores[each] for each in problems) / len(problems) for step, scores in curve.items()}


def analyse(
    sft: Curve,
    rl: Curve,
    select: str,
    how: Bootstrap,
    end: int | None = None,
    sft_id: Curve | None = None,
    rl_id: Curve | None = None,
) -> dict[str, Any]:
    """One fine-tuning run, the RL runs from its checkpoints, and what of their differences is more than chance.

    Args:
        sft: out-of-distribution scores of the fine-tuning run by step.
        rl: of the end of the RL run that started at a step.
        select: half or none.
        how: of intervals; its seed also splits the problems.
        end: as in :func:`summarise`.
        sft_id, rl_id: the same in distribution, reported beside.

    Returns:
        plain data: the summary, intervals, and the three answers `forgot`, `healed` (best start) and `best_start`.

    Raises:
        ValueError: no checkpoints, or no problems in common.
    """
    problems = shared([sft, rl] if rl else [sft])
    chosen, reported = halves(problems, how.seed) if select == "half" else (problems, problems)
    last = max(sft) if end is None else end
    peak = peak_of({step: share for step, share in shares_on(sft, chosen).items() if step <= last}) if sft else None
    summary = summarise(shares_on(sft, reported), shares_on(rl, reported), end, peak)
    forgotten = _paired(sft[summary.peak_step], sft[summary.end_step], reported, how)
    forgot = forgotten["low"] is not None and forgotten["low"] > 0
    best = peak_of(shares_on(rl, chosen)) if rl else None
    healing: dict[int, dict[str, Any]] = {
        start: {
            "share": _share(rl[start], reported, how),
            "against_end": _paired(rl[start], sft[summary.end_step], reported, how),
            "gain": _paired(rl[start], sft[start], reported, how) if start in sft else None,
            "recovery": summary.recovery[start] if forgot else None,
        }
        for start in sorted(rl)
    }
    found: dict[str, Any] = {
        "select": select,
        "problems": {"chosen_on": len(chosen), "reported_on": len(reported)},
        **asdict(summary),
        "forgotten": forgotten,
        "recovery": {start: each["recovery"] for start, each in healing.items()},
        "forgot": forgot,
        "best_start": best,
        "healed": None if best is None or not forgot else told_apart(healing[best]["against_end"]),
        "rl": healing,
        "curve": {step: _share(scores, reported, how) for step, scores in sorted(sft.items())},
    }
    if sft_id is not None:
        found["id"] = {
            "curve": {step: _share(scores, sorted(scores), how) for step, scores in sorted(sft_id.items())},
            "rl": {start: _share(scores, sorted(scores), how) for start, scores in sorted((rl_id or {}).items())},
        }
    return found


def told_apart(difference: Mapping[str, Any]) -> str:
    """yes, no (it fell further) or `not told apart`, of a paired difference with its interval."""
    if difference["low"] is None:
        return "not told apart"
    return "yes" if difference["low"] > 0 else "no" if difference["high"] < 0 else "not told apart"


def _paired(first: Scores, second: Scores, problems: Sequence[int], how: Bootstrap) -> dict[str, Any]:
    result = compare([[first[each] for each in problems]], [[second[each] for each in problems]], how)
    return {**asdict(result.difference), "p_value": result.p_value}


def _share(scores: Scores, problems: Sequence[int], how: Bootstrap) -> dict[str, Any]:
    total = sum(scores[each] for each in problems)
    low, high = wilson(min(total, len(problems)), len(problems), how.confidence)
    return {"mean": total / len(problems), "low": low, "high": high, "n": len(problems)}
