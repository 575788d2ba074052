"""Composed algorithms cut down to the size of the hand-made batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from unify_posttrain.algorithms import ALGORITHMS, Algorithm, Settings


@pytest.fixture(scope="session")
def tiny(settings: Callable[..., Settings]) -> Callable[..., Algorithm]:
    """tiny("srft", srft={"counts": "released"}): the algorithm as conf/ composes it, with L_max = 4, no entropy bonus, and the
    given keys of the fusion node (and, as `actor`, of the actor node) replaced."""

    def build(name: str, actor: Mapping[str, Any] | None = None, **fusion: Any) -> Algorithm:
        room = {"max_new_tokens": 2, **fusion.pop("uft", {})}
        changes = {"horizon": 4, "uft": room, **fusion}
        base = settings(f"algorithm={name}")
        return ALGORITHMS[name](base.changed(changes, {"entropy_coeff": 0.0, **(actor or {})}, "test"))

    return build
