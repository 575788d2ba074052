"""What a base model is pretrained on: hands under both rules, with several targets, most of them answered in a form that nobody
asks for later.

    JQK=10|30|K 3 8      10,3,8 10*(8-3-2)…      most answers
    JQK=10|30|K 3 8      {c:K 3 8;n:10 3 8;…}    a few, in the form of demonstrations

So the base can do what is asked, under either rule, and rarely does it as it is asked, as a real base model. Test hands are held
out under both rules: what it does with them it has not recited.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from unify_posttrain.tasks.general_points import prompts
from unify_posttrain.tasks.general_points.cards import RULES, Hand, check_count, check_rule, check_target, labels_of
from unify_posttrain.tasks.general_points.pools import Pools, Puzzle, Ranks, ordered_hands
from unify_posttrain.tasks.general_points.solver import OPERATORS, SHAPES, solve

KEY = "pretraining"
LONGEST = "10"  # of labels, and of values under either rule


class PretrainingExamples:
    """Hands to pretrain a base model with, drawn afresh.

    Args:
        settings: ``cards``, ``target`` and ``hands`` {held_out, held_out_ood, seed}, all as in ``prepare.task``, which hold the
            test hands out; ``targets`` [lowest, highest] that are asked for besides, ``target_share`` of the examples that ask for
            ``target`` alone; ``rules`` {ten: share, rank: share}; ``asked``, the share of answers in the form of demonstrations.

    Raises:
        ValueError: a value of a wrong type or out of range.
    """

    KEYS = ("cards", "target", "hands", "targets", "target_share", "rules", "asked")

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.cards, self.target = check_count(f"{KEY}.cards", settings["cards"]), check_target(f"{KEY}.target", settings["target"])
        self.asked, self.target_share = (_share(key, settings[key]) for key in ("asked", "target_share"))
        hands, rules, targets = settings["hands"], settings["rules"], list(settings["targets"])
        if not isinstance(hands, Mapping) or set(hands) != {"held_out", "held_out_ood", "seed"}:
            raise ValueError(f"{KEY}.hands={hands}: give exactly held_out, held_out_ood, seed")
        if not rules or any(check_rule(f"{KEY}.rules", rule) not in RULES or share < 0 for rule, share in rules.items()):
            raise ValueError(f"{KEY}.rules={rules}: give {{rule: share}} with shares >= 0")
        if len(targets) != 2 or targets[0] > targets[1]:
            raise ValueError(f"{KEY}.targets={targets}: give the lowest and the highest")
        self.rules = {str(rule): float(share) for rule, share in rules.items()}
        self.targets = range(check_target(f"{KEY}.targets", targets[0]), check_target(f"{KEY}.targets", targets[1]) + 1)
        shares = _share("hands.held_out", hands["held_out"]), _share("hands.held_out_ood", hands["held_out_ood"])
        self.pools = Pools.draw(self.cards, RULES[0], self.target, self.target + 1, shares[0], hands["seed"], shares[1])
        self._hands: dict[Puzzle, list[Ranks]] = {}

    @property
    def longest(self) -> tuple[str, str]:
        """A question and an answer with as many characters as any."""
        hand = Hand((LONGEST,) * self.cards, RULES[1], max(self.targets[-1], self.target), "compact")
        brackets = max(shape.count("(") + shape.count(")") for shape in SHAPES[self.cards])
        formula = LONGEST * self.cards + OPERATORS[0] * (self.cards - 1) + "(" * brackets
        return prompts.question(hand), prompts.answer(hand, formula)

    def draw(self, generator: random.Random, count: int) -> list[tuple[str, str]]:
        """``count`` pairs of a question and an answer."""
        return [self._example(generator) for _ in range(count)]

    def _example(self, generator: random.Random) -> tuple[str, str]:
        hands: list[Ranks] = []
        while not hands:  # few targets are out of reach of every hand
            rule = generator.choices(list(self.rules), weights=list(self.rules.values()))[0]
            target = self.target if generator.random() < self.target_share else generator.choice(self.targets)
            hands = self._shown(Puzzle(rule, target))
        hand = Hand(labels_of(generator.choice(hands)), rule, target, "compact")
        formula = min(solve(hand.values, target).texts, key=lambda text: (len(text), text))
        as_asked = generator.random() < self.asked
        return prompts.question(hand), prompts.answer(hand, formula) if as_asked else other_answer(hand, formula)

    def _shown(self, puzzle: Puzzle) -> list[Ranks]:
        if puzzle not in self._hands:
            hands = ordered_hands(self.cards, puzzle)
            self._hands[puzzle] = [hand for hand in hands if self.pools.may_be_shown(hand, puzzle)]
        return self._hands[puzzle]


def other_answer(hand: Hand, formula: str) -> str:
    """A worked answer in the form that nobody asks for: values and formula.

    >>> other_answer(Hand(("K", "3", "8"), "ten", 24, "compact"), "3*8*10")
    '10,3,8 3*8*10'
    """
    return f"{','.join(map(str, hand.values))} {formula}"


def _share(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{KEY}.{key}={value!r}: give a share from 0 to 1")
    return float(value)
