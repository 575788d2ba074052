"""Environments: tasks of several turns, written once and played alike by an agent loop, by evaluation and by a reward function.

    environment = begin(settings, row)            # the node `environment` of a task file; a row, whose `prompt` is the first prompt
    step = environment.step(answer, complete)     # reward, whether it is over, what the model is told
    environment.fields()                          # score, acc, turns, …: the same keys for every row

:func:`play` gives it answers that are known, as demonstrations are. :func:`compute_score` plays one answer in verl's signature:
answers without turns are scored by the same code. No torch and no verl in here.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from unify_posttrain.tasks.episodes import NODE, read_settings
from unify_posttrain.tasks.turns import ImageLimits, Server, Step, TurnEnvironment
from unify_posttrain.tasks.waiting import settled

# environment.name -> module and class.
ENVIRONMENTS: dict[str, str] = {
    "general_points": "unify_posttrain.tasks.general_points.environment:GeneralPoints",
    "matrices": "unify_posttrain.tasks.matrices:Matrices",
    "navigation": "unify_posttrain.tasks.navigation.environment:Navigation",
    "vrag": "unify_posttrain.tasks.vrag.environment:Vrag",
}


# (messages, target_images) -> the messages, in whose contents images stand where they are shown.
WithImages = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], list[dict[str, Any]]]


class Environment(Protocol):
    """One episode at a time. One that answers with images has `image_limits`, `check_processor`, `with_images` and `check_images`,
    too, one that asks over the network `servers`: the functions of these names in this module ask for them."""

    @property
    def generations(self) -> int:
        """Answers that are generated at most; of the row of the episode."""

    def reset(self, row: Mapping[str, Any]) -> None:
        """Begin the episode of a row of the data.

        Raises:
            TypeError, ValueError: the row is none of this environment, which is a defect of the data.
        """

    def step(self, text: str, complete: bool) -> Step | Awaitable[Step]:
        """Judge an answer; `complete`: it ended with its end token and was not cut."""

    def fields(self) -> dict[str, float | str]:
        """Of the episode so far, always under the same keys."""


def make_environment(node: Mapping[str, Any]) -> Environment:
    """A new environment.

    Args:
        node: `environment` of the configuration.

    Raises:
        ValueError: settings that it refuses.
    """
    settings, own = read_settings(_plain(node))
    if settings.name not in ENVIRONMENTS:
        raise ValueError(f"{NODE}.name={settings.name!r} is unknown; choose one of {', '.join(sorted(ENVIRONMENTS))}")
    module, _, name = ENVIRONMENTS[settings.name].partition(":")
    made: Environment = getattr(importlib.import_module(module), name)(settings, own)
    return made


def image_limits(node: Mapping[str, Any]) -> ImageLimits:
    """What episodes show in feedback; nothing, where an environment says nothing of it.

    Raises:
        ValueError: see :func:`make_environment`.
    """
    found: ImageLimits = getattr(make_environment(node), "image_limits", ImageLimits())
    return found


def servers(node: Mapping[str, Any]) -> tuple[Server, ...]:
    """What episodes ask; nothing, where an environment says nothing of it.

    Raises:
        ValueError: see :func:`make_environment`.
    """
    found: tuple[Server, ...] = getattr(make_environment(node), "servers", ())
    return found


def check_processor(node: Mapping[str, Any], least: int, most: int) -> None:
    """Refuse a processor that would change images of feedback.

    Args:
        node: `environment` of the configuration.
        least, most: pixels of images that the model is given as they are.

    Raises:
        ValueError: names the keys.
    """
    environment = make_environment(node)
    if hasattr(environment, "check_processor"):
        environment.check_processor(least, most)


def with_images(node: Mapping[str, Any]) -> WithImages | None:
    """How an environment puts the images of a row's `target_images` into its target; None: it shows none."""
    found: WithImages | None = getattr(make_environment(node), "with_images", None)
    return found


def check_images(node: Mapping[str, Any]) -> Callable[[Sequence[Mapping[str, Any]], Sequence[str]], None] | None:
    """What refuses images of a target that :func:`with_images` could not put there, with a ValueError; None: it shows none."""
    found: Callable[[Sequence[Mapping[str, Any]], Sequence[str]], None] | None
    found = getattr(make_environment(node), "check_images", None)
    return found


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float | str]:
    """Play one answer; verl's reward-function signature.

    Args:
        environment: the node of the configuration, from reward.custom_reward_function.reward_kwargs.

    Returns:
        :meth:`Environment.fields` after one turn.

    Raises:
        TypeError, ValueError: the row or the settings are at fault.
    """
    check_given(environment)
    row = {"data_source": data_source, "reward_model": {"ground_truth": ground_truth}, "extra_info": extra_info or {}}
    return play(environment, row, [solution_str])


def begin(node: Mapping[str, Any], row: Mapping[str, Any]) -> Environment:
    """A new episode of a row of the data.

    Args:
        node: `environment` of the configuration, which is read once.

    Raises:
        TypeError, ValueError: the row or the settings are at fault.
    """
    made = _prototype(json.dumps(_plain(node), sort_keys=True))
    # A copy, because calls come from several threads; `reset` gives it everything that an episode changes. Others are made anew.
    episode = copy.copy(made) if isinstance(made, TurnEnvironment) else make_environment(node)
    episode.reset(row)
    return episode


def play(node: Mapping[str, Any], row: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float | str]:
    """The fields of an episode with these answers, all of them complete; it may end before the last one.

    Raises:
        TypeError, ValueError: the row or the settings are at fault.
    """
    return played(node, row, answers).fields()


def played(node: Mapping[str, Any], row: Mapping[str, Any], answers: Sequence[str]) -> Environment:
    """The episode itself, after these answers; see :func:`play`."""
    episode = begin(node, row)
    for answer in answers:
        step = settled(episode.step(answer, True))
        if step.done:
            break
    return episode


def had_outage(episode: Environment) -> bool:
    """Whether a service failed that the episode asked, so that another time it may end otherwise."""
    return bool(getattr(episode, "outage", False))


def check_given(environment: Mapping[str, Any] | None) -> None:
    """Refuse the reward function without its environment.

    Raises:
        ValueError: names the keys.
    """
    if environment is None:
        raise ValueError(
            f"reward.custom_reward_function.reward_kwargs.{NODE} is not set: it holds the settings of the environment that this "
            f"reward function plays; set it to ${{{NODE}}}, and {NODE} by a task file, e.g. task=general_points"
        )


@lru_cache(maxsize=8)
def _prototype(settings: str) -> Environment:
    """Reading the settings costs more than judging an answer."""
    return make_environment(json.loads(settings))


def _plain(value: Any) -> Any:
    """Settings as JSON has them, whatever container they come in."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
