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
        if name == "sft_then_rl":  # its phases are composed, each with a horizon of its own
            return ALGORITHMS[name](
                settings("algorithm=sft_then_rl", "data.max_response_length=4", "actor_rollout_ref.actor.entropy_coeff=0")
            )
        base = settings(f"algorithm={name}")
        changes = {"horizon": 4, **fusion}
        if "uft" in base.fusion.own:
            changes["uft"] = {"max_new_tokens": 2, **fusion.get("uft", {})}
        return ALGORITHMS[name](base.changed(changes, {"entropy_coeff": 0.0, **(actor or {})}, "test"))

    return build
