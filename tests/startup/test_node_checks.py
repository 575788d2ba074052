"""Keys that verl's dataclasses would refuse in a worker are refused before Ray starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from unify_posttrain.config import compose_config
from unify_posttrain.startup.node_checks import check_nodes


@pytest.mark.parametrize("overrides", [(), ("algorithm=ppo", "hardware=gpu_1")])
def test_what_stands_in_conf_passes(composed: Callable[..., DictConfig], overrides: tuple[str, ...]) -> None:
    check_nodes(composed(*overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+actor_rollout_ref.actor.clip_ratoi=1",
            r"actor\.clip_ratoi is unknown to verl's FusionActorConfig; did you mean .*clip_ratio ",
        ),
        (
            "+actor_rollout_ref.rollout.val_kwargs.temprature=1",
            r"did you mean actor_rollout_ref\.rollout\.val_kwargs\.temperature\?",
        ),
        ("+critic.xyzzy=1", r"critic\.xyzzy is unknown to verl's \w+$"),
    ],
)
def test_a_key_that_a_worker_would_refuse(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_nodes(compose_config([override]))
