"""Navigation as an environment: a position of a route, and a few attempts at its action."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from unify_posttrain.tasks.episodes import NODE, EpisodeSettings, number, own_settings
from unify_posttrain.tasks.navigation.prompts import STYLES, feedback
from unify_posttrain.tasks.navigation.routes import RULES
from unify_posttrain.tasks.turns import TurnEnvironment, Verdict, ground_truth
from unify_posttrain.untrusted.documents import DocumentError, parse

KEYS = ("rewards", "check_intersection", "read_characters")
OUTCOMES = ("right_action", "wrong_action", "wrong_observation", "no_action")
CHECKS = ("fixed", "upstream")
TRUTH_KEYS = ("rule", "style", "action", "other_action", "landmark", "intersection")
CLAIM = "an intersection"

_NATIVE = r"""["']{key}["']\s*:\s*(?:"([^"\n]*)"|'([^'\n]*)')"""
_UPSTREAM = r'"{key}": "([^"\n]*)"()'


class Navigation(TurnEnvironment):
    """See :class:`~unify_posttrain.tasks.environment.Environment`.

    Raises:
        ValueError: settings that are missing, unknown or of a wrong type.
    """

    OUTCOMES = OUTCOMES

    def __init__(self, settings: EpisodeSettings, own: Mapping[str, Any]) -> None:
        own_settings(own, KEYS)
        if own["check_intersection"] not in CHECKS:
            raise ValueError(
                f"{NODE}.check_intersection={own['check_intersection']!r} is unknown; choose one of {', '.join(CHECKS)}"
            )
        if type(own["read_characters"]) is not int or own["read_characters"] < 1:
            raise ValueError(f"{NODE}.read_characters={own['read_characters']!r}: give an integer of at least 1")
        if not isinstance(own["rewards"], Mapping) or set(own["rewards"]) != set(OUTCOMES):
            raise ValueError(f"{NODE}.rewards={own['rewards']}: give exactly {', '.join(OUTCOMES)}")
        self.rewards_of = {name: number(f"{NODE}.rewards.{name}", value) for name, value in own["rewards"].items()}
        self.published_check, self.read_characters = own["check_intersection"] == "upstream", own["read_characters"]
        super().__init__(settings)

    @property
    def lowest(self) -> float:
        """The same for every row."""
        return min(self.rewards_of.values())

    def load(self, row: Mapping[str, Any]) -> None:
        """A row of `prepare task=navigation`.

        Raises:
            TypeError, ValueError: it holds no position.
        """
        truth = ground_truth(row, TRUTH_KEYS)
        for key, known in (("rule", RULES), ("style", STYLES)):
            if truth[key] not in known:
                raise ValueError(f"reward_model.ground_truth: {key}={truth[key]!r} is unknown; choose one of {', '.join(known)}")
        for key, kind in (("action", str), ("other_action", str), ("landmark", str), ("intersection", bool)):
            if not isinstance(truth[key], kind):
                raise ValueError(f"reward_model.ground_truth: {key}={truth[key]!r} must be of type {kind.__name__}")
        self.truth = truth

    def judge(self, text: str) -> Verdict:
        """The action counts; a wrong one costs more if the answer misses an intersection, or sees one that is not there."""
        text, style = text[-self.read_characters :], self.truth["style"]
        action, seen = read_key(text, "action", style), read_key(text, "current observation", style)
        if action is None:
            return self._verdict("no_action", "")
        if _same(action, self.truth["action"], style):
            return self._verdict("right_action", action)
        # The published test looks for the intersection in the landmark's part of what is seen, where it never stands.
        there = CLAIM in self.truth["landmark"].lower() if self.published_check else self.truth["intersection"]
        other = self.truth["action"] != self.truth["other_action"] and _same(action, self.truth["other_action"], style)
        outcome = "wrong_action" if (CLAIM in (seen or "").lower()) == there else "wrong_observation"
        return self._verdict(outcome, action, other)

    def _verdict(self, outcome: str, action: str, other: bool = False) -> Verdict:
        solved = outcome == "right_action"
        told = "" if solved else feedback(self.truth["style"], outcome)
        return Verdict(outcome, self.rewards_of[outcome], solved, told, action, other)


def _same(said: str, right: str, style: str) -> bool:
    """Native: case and blanks do not matter."""
    return said == right if style == "upstream" else "".join(said.split()).lower() == "".join(right.split()).lower()


def read_key(text: str, key: str, style: str) -> str | None:
    """A text value of an answer: of its JSON, else the last (upstream: the first) that stands behind the key."""
    if "{" in text:
        try:
            document = parse(text)
        except DocumentError:
            document = None
        if isinstance(document, dict) and isinstance(document.get(key), str):
            return str(document[key])
    found = re.findall((_UPSTREAM if style == "upstream" else _NATIVE).format(key=key), text)
    return "".join(found[0 if style == "upstream" else -1]) if found else None
