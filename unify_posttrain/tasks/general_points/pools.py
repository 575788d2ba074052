"""Which hands there are, and which of them are for training: pools that are disjoint by the values of the cards.

J 2 3 4 and Q 2 3 4 have other labels and are one puzzle under the rule `ten`. So the split holds out value multisets, and every
hand that has such values is for the test alone. Under the other rule, labels can be held out besides: then neither a training hand
nor a base model that is pretrained here has the labels of a hand of `gp_ood`.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cached_property, lru_cache

from unify_posttrain.tasks.general_points.cards import FACES, LABELS, RANKS, RULES, worth
from unify_posttrain.tasks.general_points.solver import playable_values

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Puzzle:
    """What a hand has to reach under which rule."""

    rule: str
    target: int

    @property
    def largest(self) -> int:
        """The highest value of a card."""
        return worth(len(LABELS), self.rule)

    def values(self, ranks: Ranks) -> Ranks:
        """What a hand is worth, sorted."""
        return tuple(sorted(worth(rank, self.rule) for rank in ranks))

    def playable(self, ranks: Ranks) -> bool:
        """Whether the hand reaches the target."""
        return self.values(ranks) in playable_values(self.largest, len(ranks), self.target)


def has_face(ranks: Ranks) -> bool:
    """Whether a hand has J, Q or K."""
    return max(ranks) >= RANKS[FACES[0]]


@lru_cache(maxsize=8)
def ordered_hands(cards: int, puzzle: Puzzle) -> tuple[Ranks, ...]:
    """Every playable hand, in every order."""
    ranks = range(1, len(LABELS) + 1)
    return tuple(hand for hand in itertools.product(ranks, repeat=cards) if puzzle.playable(hand))


@dataclass(frozen=True)
class Pools:
    """The hands of a task.

    Attributes:
        cards: of a hand.
        id, ood, ood_target: what is asked in training, under the other rule, and with another target.
        held_out: value multisets of the test.
        held_out_ood: sorted ranks of the hands of `gp_ood`; empty: any hand may be one.
    """

    cards: int
    id: Puzzle
    ood: Puzzle
    ood_target: Puzzle
    held_out: frozenset[Ranks]
    held_out_ood: frozenset[Ranks] = frozenset()

    @classmethod
    def draw(cls, cards: int, rule: str, target: int, other_target: int, share: float, seed: int, share_ood: float = 0) -> Pools:
        """Hold out a share of the value multisets that are playable in training, and one of the hands with a face that are playable
        under the other rule, whatever their order; both by `seed`."""
        puzzle, other = Puzzle(rule, target), Puzzle(RULES[1 - RULES.index(rule)], target)
        values = sorted(playable_values(puzzle.largest, cards, target))
        held_out = frozenset(random.Random(seed).sample(values, round(share * len(values))))
        labels = sorted({tuple(sorted(hand)) for hand in ordered_hands(cards, other) if has_face(hand)}) if share_ood else []
        held_out_ood = frozenset(random.Random(f"{seed}-ood").sample(labels, round(share_ood * len(labels))))
        return cls(cards, puzzle, other, Puzzle(rule, other_target), held_out, held_out_ood)

    def may_be_shown(self, ranks: Ranks, puzzle: Puzzle) -> bool:
        """Whether a base model may see a hand under a rule: neither its values nor its labels are those of a test hand."""
        if puzzle.target != self.id.target:
            return True
        values, labels = puzzle.values(ranks), tuple(sorted(ranks))
        return values not in self.held_out and values not in self._ood_values and labels not in self.held_out_ood

    @cached_property
    def _ood_values(self) -> frozenset[Ranks]:
        return frozenset(self.ood.values(hand) for hand in self.held_out_ood)

    def train(self) -> list[Ranks]:
        """Hands of which neither values nor labels are held out."""
        hands = [hand for hand in ordered_hands(self.cards, self.id) if self.id.values(hand) not in self.held_out]
        return [hand for hand in hands if tuple(sorted(hand)) not in self.held_out_ood]

    def unseen(self) -> list[Ranks]:
        """Hands whose values no training hand has."""
        return [hand for hand in ordered_hands(self.cards, self.id) if self.id.values(hand) in self.held_out]

    def other_rule(self) -> list[Ranks]:
        """Hands with a face that reach the target under the other rule."""
        hands = [hand for hand in ordered_hands(self.cards, self.ood) if has_face(hand)]
        return [hand for hand in hands if tuple(sorted(hand)) in self.held_out_ood] if self.held_out_ood else hands

    def other_target(self) -> list[Ranks]:
        """Hands that reach the other target."""
        return list(ordered_hands(self.cards, self.ood_target))
