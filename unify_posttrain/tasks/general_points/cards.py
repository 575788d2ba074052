"""Cards, the two rules of what they are worth, and hands as data rows hold them.

A hand is an ordered list of ranks 1 to 13. Under the rule `ten` a rank is worth min(rank, 10); under `rank` the faces are worth 11,
12 and 13. An ace is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABELS = ("A", *map(str, range(2, 11)), "J", "Q", "K")
RANKS = {label: rank for rank, label in enumerate(LABELS, start=1)}
FACES = ("J", "Q", "K")
RULES = ("ten", "rank")
STYLES = ("native", "upstream", "compact")
COUNTS = (2, 3, 4)
TARGETS = range(1, 1000)
TRUTH_KEYS = ("cards", "rule", "target", "style")
SUITS_KEY = "suits"  # of a hand that is shown as a picture, besides
SIGNS = {"C": "\u2663", "D": "\u2666", "H": "\u2665", "S": "\u2660"}  # clubs, diamonds, hearts, spades
RED = ("D", "H")
COLOURS = {"black": ("C", "S"), "red": RED, "mixed": tuple(SIGNS)}


def worth(rank: int, rule: str) -> int:
    """Value of a rank.

    >>> worth(12, "ten"), worth(12, "rank"), worth(1, "rank")
    (10, 12, 1)
    """
    return min(rank, 10) if rule == "ten" else rank


def check_rule(key: str, rule: Any) -> str:
    """A rule; ValueError names the key."""
    if rule not in RULES:
        raise ValueError(f"{key}={rule!r} is unknown; choose one of {', '.join(RULES)}")
    return str(rule)


def check_style(key: str, style: Any) -> str:
    """A style of prompts; ValueError names the key."""
    if style not in STYLES:
        raise ValueError(f"{key}={style!r} is unknown; choose one of {', '.join(STYLES)}")
    return str(style)


def check_target(key: str, target: Any) -> int:
    """A target; ValueError names the key."""
    if type(target) is not int or target not in TARGETS:
        raise ValueError(f"{key}={target!r}: give a whole number from {TARGETS[0]} to {TARGETS[-1]}")
    return target


def check_count(key: str, count: Any) -> int:
    """A number of cards; ValueError names the key."""
    if type(count) is not int or count not in COUNTS:
        raise ValueError(f"{key}={count!r}: a hand has {COUNTS[0]} to {COUNTS[-1]} cards")
    return count


@dataclass(frozen=True)
class Hand:
    """A hand with what is asked of it.

    Attributes:
        labels: of its cards, in their order.
        rule: `ten` or `rank`.
        target: to be reached.
        style: of the prompt, and hence of feedback and of how an answer is read.
        suits: of cards that are shown as a picture, C, D, H or S each; empty: the prompt names the cards.
    """

    labels: tuple[str, ...]
    rule: str
    target: int
    style: str
    suits: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """What the cards are worth, in their order."""
        return tuple(worth(RANKS[label], self.rule) for label in self.labels)

    @property
    def other_values(self) -> tuple[int, ...]:
        """The same under the other rule."""
        return tuple(worth(RANKS[label], RULES[1 - RULES.index(self.rule)]) for label in self.labels)

    @property
    def faces(self) -> int:
        """Cards whose worth depends on the rule."""
        return sum(label in FACES for label in self.labels)

    @classmethod
    def from_truth(cls, truth: Mapping[str, Any]) -> Hand:
        """A hand of a data row.

        Args:
            truth: {cards: list of labels, rule, target, style}, and suits of a hand that is shown as a picture.

        Raises:
            ValueError: a value that is none of these.
        """
        cards = truth["cards"]
        if not isinstance(cards, list) or any(card not in LABELS for card in cards):
            raise ValueError(f"cards={str(cards)[:80]}: give a list of {', '.join(LABELS)}")
        check_count("cards", len(cards))
        rule, target = check_rule("rule", truth["rule"]), check_target("target", truth["target"])
        suits = truth.get(SUITS_KEY, [])
        if not isinstance(suits, list) or any(suit not in SIGNS for suit in suits) or (suits and len(suits) != len(cards)):
            raise ValueError(f"{SUITS_KEY}={str(suits)[:80]}: give one of {', '.join(SIGNS)} for each card")
        return cls(tuple(cards), rule, target, check_style("style", truth["style"]), tuple(suits))

    def truth(self) -> dict[str, Any]:
        """Inverse of :meth:`from_truth`."""
        told = {"cards": list(self.labels), "rule": self.rule, "target": self.target, "style": self.style}
        return {**told, SUITS_KEY: list(self.suits)} if self.suits else told


def labels_of(ranks: Sequence[int]) -> tuple[str, ...]:
    """Labels of ranks 1 to 13.

    >>> labels_of([1, 10, 13])
    ('A', '10', 'K')
    """
    return tuple(LABELS[rank - 1] for rank in ranks)
