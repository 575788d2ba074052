"""Ground truths of the generated tasks, before anything starts: their verifiers raise for one that is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unify_posttrain.tasks import arithmetic, countdown

VERIFIERS = {f"pkg://{module.__name__}": module.compute_score for module in (arithmetic, countdown)}


def check_own_truths(node: Mapping[str, Any], truths: Iterable[tuple[str, Any]]) -> None:
    """Ask the verifier of a generated task about every ground truth; another reward function is not asked.

    Args:
        node: {path, name, …} of the reward function.
        truths: (place of the row, ground truth).

    Raises:
        ValueError: one that the verifier cannot use; names the row.
    """
    verify = VERIFIERS.get(str(node.get("path")))
    if verify is None:
        return
    for place, truth in truths:
        try:
            verify("", "", truth)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
