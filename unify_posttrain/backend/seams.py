"""The names that a version of verl puts elsewhere, or does not have: `from unify_posttrain.backend.seams import …`.

`verl07` and `verl09` define the same names, one set each. A difference that is found goes there, and not into a condition where it
hurts.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

TESTED = ("0.7.1", "0.9.1")  # of verl
LEGACY, ENGINE = "legacy", "engine"


def installed() -> str | None:
    """The version of verl; None without one."""
    try:
        return version("verl")
    except PackageNotFoundError:
        return None


if (installed() or TESTED[0]).startswith("0.7."):
    from unify_posttrain.backend.verl07 import (
        BACKENDS,
        FORGETS_PICTURES,
        HEAD_DIMS,
        LOST_OVERRIDES,
        VLLM_ON_CPU,
        adapted,
        base_task_runner,
        completed,
        critic_parts,
        data_builders,
        engine_fixes,
        keep_weights,
        loop_arguments,
        loop_fixes,
        message_key,
        missing_part,
        naming_devices,
        rollout_manager,
        rope_inputs,
        start_load_balancer,
        tell_critic,
        value_head,
        wait_for_dump,
    )
else:
    from unify_posttrain.backend.verl09 import (
        BACKENDS,
        FORGETS_PICTURES,
        HEAD_DIMS,
        LOST_OVERRIDES,
        VLLM_ON_CPU,
        adapted,
        base_task_runner,
        completed,
        critic_parts,
        data_builders,
        engine_fixes,
        keep_weights,
        loop_arguments,
        loop_fixes,
        message_key,
        missing_part,
        naming_devices,
        rollout_manager,
        rope_inputs,
        start_load_balancer,
        tell_critic,
        value_head,
        wait_for_dump,
    )

__all__ = [
    "BACKENDS",
    "ENGINE",
    "FORGETS_PICTURES",
    "HEAD_DIMS",
    "LEGACY",
    "LOST_OVERRIDES",
    "TESTED",
    "VLLM_ON_CPU",
    "adapted",
    "base_task_runner",
    "completed",
    "critic_parts",
    "data_builders",
    "engine_fixes",
    "installed",
    "keep_weights",
    "loop_arguments",
    "loop_fixes",
    "message_key",
    "missing_part",
    "naming_devices",
    "rollout_manager",
    "rope_inputs",
    "start_load_balancer",
    "tell_critic",
    "value_head",
    "wait_for_dump",
]
