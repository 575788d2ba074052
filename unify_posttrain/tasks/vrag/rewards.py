"""The reward of an episode: whether the answer is right, the form was kept, and how early the pages that matter were shown."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from unify_posttrain.tasks.vrag.settings import RewardSettings


def ndcg(shown: Sequence[str], gold: Collection[str]) -> float:
    """Normalised discounted cumulative gain of the pages that were shown, in their order; 0 if no page matters.

    >>> ndcg(["x", "g"], {"g"}), ndcg([], {"g"})
    (0.6309297535714575, 0.0)
    """
    gain = sum(1 / math.log2(place + 1) for place, page in enumerate(shown, start=1) if page in gold)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, len(gold) + 1))
    return gain / ideal if ideal else 0.0


def recall(shown: Sequence[str], gold: Collection[str]) -> float:
    """1 if any page that matters was shown."""
    return float(any(page in gold for page in shown))


@dataclass(frozen=True)
class Outcome:
    """What an episode came to.

    Attributes:
        answered: there is an answer.
        searches: that were carried out.
        right: the judge's word; of an answer in the wrong form nobody asks it.
        ndcg: of the pages shown.
    """

    answered: bool
    searches: int
    right: bool
    ndcg: float

    def in_form(self, settings: RewardSettings) -> bool:
        """An answer, and a search before it if one is required."""
        return self.answered and (self.searches >= 1 or not settings.require_search)

    def reward(self, settings: RewardSettings, training: bool) -> float:
        """The mixed score in training, the judge's alone elsewhere; 0 in the wrong form."""
        if not self.in_form(settings):
            return 0.0
        if not training:
            return float(self.right)
        weights = settings.weights
        return weights["judge"] * self.right + weights["format"] + weights["ndcg"] * self.ndcg
