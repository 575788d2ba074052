"""Ground truths of the generated tasks, before anything starts: their verifiers raise for one that is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unify_posttrain.tasks import arithmetic, countdown, environment

VERIFIERS = {f"pkg://{module.__name__}": module.compute_score for module in (arithmetic, countdown, environment)}


def check_own_truths(node: Mapping[str, Any], truths: Iterable[tuple[str, Any]]) -> None:
    """Ask the verifier of a generated task about every ground truth; another reward function is not asked.

    Args:
        node: {path, name, reward_kwargs, …} of the reward function.
        truths: (place of the row, ground truth).

    Raises:
        ValueError: one that the verifier cannot use; names the row. Settings of an environment that are refused.
    """
    verify = VERIFIERS.get(str(node.get("path")))
    if verify is None:
        return
    options = node.get("reward_kwargs") or {}
    if verify is environment.compute_score:  # settings first: their fault is no row's
        environment.check_given(options.get("environment"))
        environment.make_environment(options["environment"])
    for place, truth in truths:
        try:
            verify("", "", truth, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
