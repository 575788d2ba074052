"""Which settings an algorithm reads, found by watching it build its rows, advantage and terms."""

from __future__ import annotations

from copy import copy
from dataclasses import is_dataclass
from typing import Any

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.groups import Prompt

ACTOR = "actor_rollout_ref.actor"


class _Watched:
    """A settings object that notes the dotted keys that are read of it."""

    def __init__(self, settings: Any, path: str, seen: set[str]) -> None:
        self._settings, self._path, self._seen = settings, path, seen

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._settings, name)
        if is_dataclass(value):
            return _Watched(value, f"{self._path}.{name}", self._seen)
        self._seen.add(f"{self._path}.{name}")
        return value


def settings_read(algorithm: Algorithm) -> set[str]:
    """Dotted keys of the configuration that the algorithm's rows, advantage, terms, factors and replay follow from.

    Checks are left out: they look at every setting, also at those that nothing follows from.
    """
    seen: set[str] = set()
    watched = copy(algorithm)
    watched.settings = _Watched(algorithm.settings, ACTOR, seen)  # type: ignore[assignment]
    watched.fusion = _Watched(algorithm.fusion, "fusion", seen)  # type: ignore[assignment]
    for name, kind in algorithm.nodes.items():
        value = getattr(algorithm, name, None)
        if is_dataclass(kind):
            setattr(watched, name, _Watched(value, f"fusion.{name}", seen))
        else:
            seen.add(f"fusion.{name}")
    rule = watched.experience
    rule.response_prefixes(Prompt(0), step=1)
    plan = rule.plan([])
    _ = (watched.terms, watched.advantage, watched.scales(plan, step=1), watched.step_metrics(1))
    _ = (watched.replay, watched.replay_step, watched.replay_terms)
    return {
        key for key in seen if key not in ("fusion.group_size", "fusion.horizon", "fusion.adv_estimator", "fusion.norm_adv_by_std")
    } | {
        verls
        for ours, verls in (
            ("fusion.adv_estimator", "algorithm.adv_estimator"),
            ("fusion.norm_adv_by_std", "algorithm.norm_adv_by_std_in_grpo"),
        )
        if ours in seen
    }
