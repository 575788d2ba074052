"""What `dry_run=true` says of an analysis of weights: matrices, disk, time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from unify_posttrain.analysis.weights.conduct import Comparison
from unify_posttrain.analysis.weights.folders import bytes_needed
from unify_posttrain.analysis.weights.pairs import open_pair
from unify_posttrain.analysis.weights.recovery import Recovery
from unify_posttrain.analysis.weights.restore import count

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
    parts = 1 + 2 * len(pairs)
    shapes = [first.shape(name) for name in first.names]
    yield f"{len(first.names)} matrices, from {_size(min(shapes))} to {_size(max(shapes))}; {parts} decompositions of each"
    for why, number in first.skipped.items():
        yield f"{number} selected tensors are skipped: {why}"
    if isinstance(settings, Recovery):
        folders = len(settings.folders)
        yield f"{folders} restored models, {bytes_needed(first, folders) / 1e9:.2f} GB on disk, in {settings.output / 'restored'}"
    volume = float(parts * sum(max(shape) * min(shape) ** 2 for shape in shapes))
    if isinstance(settings, Comparison) and settings.what == "angles":
        volume += sum(_angle_volume(shape, settings.how.subspaces) for shape in shapes) * len(pairs)
    seconds = volume * seconds_per_volume(precision.dtype, precision.device)
    yield (
        f"decompositions in {str(precision.dtype).removeprefix('torch.')} on {precision.device}: about {_span(seconds)}, by the "
        f"time of one of {PROBE}x{PROBE}"
    )


def _angle_volume(shape: tuple[int, int], subspaces: Sequence[int | float]) -> float:
    """Of principal angles, which are decompositions themselves: per size and side those of the tuned matrix and of the noise. They
    are in double precision, which takes about twice as long."""
    return 4.0 * sum(n * count(share, min(shape)) ** 2 for share in subspaces for n in shape)


def seconds_per_volume(dtype: torch.dtype, device: torch.device) -> float:
    """Time of a decomposition by its volume m·n·min(m, n), from one that is timed."""
    probe = torch.randn(PROBE, PROBE, dtype=dtype, device=device)
    torch.linalg.svd(probe[:8, :8])  # the first call on a device loads libraries
    began = time.perf_counter()
    torch.linalg.svd(probe, full_matrices=False)[1].cpu()
    return (time.perf_counter() - began) / PROBE**3


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
