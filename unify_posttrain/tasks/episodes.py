"""What all environments share of the node `environment`: how long an episode is, and what number it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

NODE = "environment"
SCORES = ("outcome", "sum", "last")
CREDITS = ("trajectory", "turn")
GAES = ("token", "turn")


@dataclass(frozen=True)
class EpisodeSettings:
    """The keys of the node `environment` that all environments share.

    Attributes:
        name: of the environment.
        max_turns: answers that are verified.
        max_tokens_per_turn: of one answer.
        min_turn_tokens: no turn begins with less room than this.
        score: the number of a trajectory: `outcome` (solved or not), `sum` or `last` of the rewards of its turns.
        credit: whose reward a token gets: the `trajectory`'s or its `turn`'s.
        gae: over `token` or over `turn`.
        limit_penalty: added to the last reward when all turns are used up.

    Raises:
        ValueError: a value of a wrong type or outside its choices; names key, value and remedy.
    """

    name: str
    max_turns: int
    max_tokens_per_turn: int
    min_turn_tokens: int
    score: str
    credit: str
    gae: str
    limit_penalty: float

    def __post_init__(self) -> None:
        for key, known in {"score": SCORES, "credit": CREDITS, "gae": GAES}.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{NODE}.{key}={getattr(self, key)!r} is unknown; choose one of {', '.join(known)}")
        for key in ("max_turns", "max_tokens_per_turn", "min_turn_tokens"):
            value = getattr(self, key)
            if type(value) is not int or value < 1:
                raise ValueError(f"{NODE}.{key}={value!r}: give an integer of at least 1")
        number(f"{NODE}.limit_penalty", self.limit_penalty)
        if self.min_turn_tokens > self.max_tokens_per_turn:
            raise ValueError(
                f"{NODE}.min_turn_tokens={self.min_turn_tokens} exceeds {NODE}.max_tokens_per_turn={self.max_tokens_per_turn}, "
                "so no turn could begin; lower it"
            )
        if self.credit == "turn" and self.score != "sum":
            raise ValueError(
                f"{NODE}.credit=turn places the reward of every turn, whose sum is the score; {NODE}.score={self.score} is not "
                f"that: set {NODE}.score=sum, or {NODE}.credit=trajectory"
            )
        if self.gae == "turn" and self.credit != "turn":
            raise ValueError(f"{NODE}.gae=turn needs the rewards of turns; set {NODE}.credit=turn, or {NODE}.gae=token")

    def check_estimator(self, estimator: str) -> None:
        """Refuse turn credit without a critic: `estimator` is algorithm.adv_estimator, of which `gae` alone has one.

        Raises:
            ValueError: names both keys.
        """
        if estimator == "gae":
            return
        for key in ("gae", "credit"):
            if getattr(self, key) == "turn":
                other = {"gae": "token", "credit": "trajectory"}[key]
                raise ValueError(
                    f"{NODE}.{key}=turn needs a critic, and algorithm.adv_estimator={estimator} has none; use algorithm=ppo, or "
                    f"set {NODE}.{key}={other}"
                )


def episode_node(config: Any) -> dict[str, Any] | None:
    """The node `environment` of a configuration as plain data; None: it has none, and rollouts are single answers."""
    found = config.get(NODE)
    if found is None:
        return None
    from omegaconf import OmegaConf  # here, because what only builds models and data does without it

    plain: dict[str, Any] = OmegaConf.to_container(found, resolve=True)
    return plain


def read_settings(node: Mapping[str, Any]) -> tuple[EpisodeSettings, dict[str, Any]]:
    """The shared settings, and apart from them the environment's own.

    Raises:
        ValueError: a missing key, or a value that :class:`EpisodeSettings` refuses.
    """
    names = [item.name for item in fields(EpisodeSettings)]
    absent = [name for name in names if name not in node]
    if absent:
        raise ValueError(f"{NODE}.{absent[0]} is not set; conf/task/general_points.yaml shows every key")
    return EpisodeSettings(**{name: node[name] for name in names}), {key: value for key, value in node.items() if key not in names}


def number(key: str, value: Any) -> float:
    """A finite number of the configuration.

    Raises:
        ValueError: names the key.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ValueError(f"{key}={value!r}: give a number")
    return float(value)


def own_settings(own: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse settings of an environment that are missing or unknown.

    Raises:
        ValueError: names them.
    """
    wrong = sorted(set(own) ^ set(names))
    if wrong:
        raise ValueError(f"{NODE}.{wrong[0]} is {'unknown' if wrong[0] in own else 'not set'}; its own keys are {', '.join(names)}")


def trajectory_score(rewards: Sequence[float], solved: bool, score: str) -> float:
    """The number of a trajectory, from the rewards of its turns.

    >>> [trajectory_score([-2, -1, 5], True, score) for score in SCORES]
    [1.0, 2.0, 5.0]
    """
    if score == "outcome":
        return float(solved)
    return float(sum(rewards) if score == "sum" else (rewards or [0.0])[-1])
