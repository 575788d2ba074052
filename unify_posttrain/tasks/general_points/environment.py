"""General points as an environment: a hand, up to max_turns answers, feedback after each wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unify_posttrain.tasks.episodes import NODE, EpisodeSettings, own_settings
from unify_posttrain.tasks.general_points.cards import SUITS_KEY, TRUTH_KEYS, Hand
from unify_posttrain.tasks.general_points.prompts import feedback
from unify_posttrain.tasks.general_points.solver import playable_values
from unify_posttrain.tasks.general_points.verifier import OUTCOMES, Rewards, Verifier
from unify_posttrain.tasks.turns import TurnEnvironment, Verdict, ground_truth

KEYS = ("rewards", "upstream_compat", "check_rhs", "read_characters")
DIALECTS = ("native", "upstream")


class GeneralPoints(TurnEnvironment):
    """See :class:`~unify_posttrain.tasks.environment.Environment`.

    Raises:
        ValueError: settings that are missing, unknown or of a wrong type.
    """

    OUTCOMES = OUTCOMES

    def __init__(self, settings: EpisodeSettings, own: Mapping[str, Any]) -> None:
        own_settings(own, KEYS)
        for key in ("upstream_compat", "check_rhs"):
            if type(own[key]) is not bool:
                raise ValueError(f"{NODE}.{key}={own[key]!r}: give true or false")
        if type(own["read_characters"]) is not int or own["read_characters"] < 1:
            raise ValueError(f"{NODE}.read_characters={own['read_characters']!r}: give an integer of at least 1")
        if not isinstance(own["rewards"], Mapping) or set(own["rewards"]) != set(DIALECTS):
            raise ValueError(f"{NODE}.rewards={own['rewards']}: give exactly {', '.join(DIALECTS)}")
        rewards = {name: Rewards.from_node(f"rewards.{name}", own["rewards"][name]) for name in DIALECTS}
        self.verifier = Verifier(rewards, own["upstream_compat"], own["check_rhs"], own["read_characters"])
        super().__init__(settings, extra_turn=own["upstream_compat"])

    @property
    def lowest(self) -> float:
        """Of the dialect of the hand."""
        rewards = self.verifier.rewards[self.verifier.dialect(self.hand)]
        return min(rewards.by_outcome.values()) if rewards.floor is None else rewards.floor

    def load(self, row: Mapping[str, Any]) -> None:
        """A row of `prepare task=general_points`.

        Raises:
            TypeError, ValueError: it holds no hand, or one without a solution.
        """
        self.hand = Hand.from_truth(ground_truth(row, TRUTH_KEYS, (SUITS_KEY,)))
        if not is_playable(self.hand):
            raise ValueError(
                f"cards {', '.join(self.hand.labels)} under rule={self.hand.rule} never reach target={self.hand.target}; leave the "
                "row out, or make the data with unify_posttrain.prepare"
            )

    def judge(self, text: str) -> Verdict:
        """See :class:`Verifier`. Cards that are shown as a picture have to be named before a formula counts."""
        found = self.verifier.judge(text, self.hand, check_cards=bool(self.hand.suits))
        style = self.hand.style if self.hand.style == "compact" else self.verifier.dialect(self.hand)
        solved = found.outcome == "correct_solution"
        told = "" if solved else feedback(found, style)
        return Verdict(found.outcome, found.reward, solved, told, found.left, found.other_rule)


def is_playable(hand: Hand) -> bool:
    """Whether a hand reaches its target."""
    values = tuple(sorted(hand.values))
    return values in playable_values(10 if hand.rule == "ten" else 13, len(values), hand.target)
