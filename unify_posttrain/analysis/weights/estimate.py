"""What `dry_run=true` says of an analysis of weights: matrices, disk, time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from unify_posttrain.analysis.weights.conduct import Comparison
from unify_posttrain.analysis.weights.folders import bytes_needed
from unify_posttrain.analysis.weights.pairs import open_pair
from unify_posttrain.analysis.weights.recovery import Recovery

PROBE = 512  # side of the matrix whose decomposition is timed: the time grows with the cube


def plan(settings: Comparison | Recovery) -> Iterator[str]:
    """Lines of the plan; all guards but the search for non-finite numbers, which reads everything, are asked.

    Raises:
        ValueError: a guard.
    """
    tuned = {"tuned": settings.tuned} if isinstance(settings, Recovery) else settings.tuned
    pairs = [open_pair(settings.base, folder, settings.selection, finite=False) for folder in tuned.values()]
    first = pairs[0]
    precision = settings if isinstance(settings, Recovery) else settings.how
    # Per matrix: the base, and per tuned model its own and that of the noise, or (recovery) that of ΔW.
    count = 1 + 2 * len(pairs)
    shapes = [first.shape(name) for name in first.names]
    yield f"{len(first.names)} matrices, from {_size(min(shapes))} to {_size(max(shapes))}; {count} decompositions of each"
    for why, number in first.skipped.items():
        yield f"{number} selected tensors are skipped: {why}"
    if isinstance(settings, Recovery):
        folders = len(settings.folders)
        yield f"{folders} restored models, {bytes_needed(first, folders) / 1e9:.2f} GB on disk, in {settings.output / 'restored'}"
    seconds = count * seconds_of(shapes, precision.dtype, precision.device)
    yield (
        f"decompositions in {str(precision.dtype).removeprefix('torch.')} on {precision.device}: about {_span(seconds)}, by the "
        f"time of one of {PROBE}x{PROBE}"
    )


def seconds_of(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> float:
    """Time of one decomposition of each of these (m, n), from one that is timed."""
    probe = torch.randn(PROBE, PROBE, dtype=dtype, device=device)
    torch.linalg.svd(probe[:8, :8])  # the first call on a device loads libraries
    began = time.perf_counter()
    torch.linalg.svd(probe, full_matrices=False)[1].cpu()
    unit = (time.perf_counter() - began) / PROBE**3
    return unit * sum(max(shape) * min(shape) ** 2 for shape in shapes)


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
