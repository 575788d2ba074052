"""Coefficients that change over training, as pure functions of the step."""

from __future__ import annotations

from math import cos, pi


def chord_mu(step: int, warm: int, decay: int, peak: float, valley: float) -> float:
    """μ of CHORD (arXiv 2508.11408), the share of fine-tuning in (1-μ)·L_RL + μ·L_SFT.

    Linear from 0 to `peak` over `warm` steps, along a cosine to `valley` over `decay` more, then held.

    Args:
        step: steps already taken, counted from 0.
        warm, decay: lengths in steps; 0 leaves the phase out.
        peak, valley: shares in [0, 1].

    Raises:
        ValueError: a length or share outside its range, or a negative step.

    >>> chord_mu(100, warm=200, decay=400, peak=0.5, valley=0.02)
    0.25
    """
    _check_step(step)
    for name, length in (("warm", warm), ("decay", decay)):
        if length < 0:
            raise ValueError(f"fusion.chord.{name}={length} must be 0 or more steps")
    for name, share in (("peak", peak), ("valley", valley)):
        _check_share(f"fusion.chord.{name}", share)
    if step < warm:
        return peak * step / warm
    if step < warm + decay:
        return valley + (peak - valley) * (1 + cos(pi * (step - warm) / decay)) / 2
    return float(valley)


def warmup_cosine(step: int, total: int, start: float, warmup_ratio: float, floor: float) -> float:
    """Factor on the base learning rate: linear from `start` to 1, along a cosine to `floor`, then held.

    Args:
        step: optimizer steps already taken, counted from 0.
        total: steps at which `floor` is reached; the warm-up takes the first int(warmup_ratio·total) of them.
        start: factor at step 0, in [0, 1]; without warm-up steps the factor starts at 1.
        warmup_ratio: share of `total`, in [0, 1].
        floor: least learning rate / base learning rate, in [0, 1].

    Raises:
        ValueError: a length or share outside its range, or a negative step.

    >>> warmup_cosine(5, total=100, start=0.05, warmup_ratio=0.1, floor=0.01)
    0.525
    """
    _check_step(step)
    if total < 1:
        raise ValueError(f"trainer.total_training_steps={total} must be at least 1")
    for name, share in (("start", start), ("warmup_ratio", warmup_ratio), ("min_lr / lr", floor)):
        _check_share(f"fusion.lr_schedule.{name}", share)
    warm = int(warmup_ratio * total)
    if step < warm:
        return start + (1 - start) * step / warm
    if step < total:
        return floor + (1 - floor) * (1 + cos(pi * (step - warm) / (total - warm))) / 2
    return float(floor)


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step={step}: a schedule counts steps from 0")


def _check_share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{key}={value} must lie in [0, 1]")
