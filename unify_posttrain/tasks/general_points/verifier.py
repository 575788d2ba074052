"""The verifier of general points: faults of characters, of sequence and of numbers, then the exact value.

It reports faults as data; `prompts` puts them into words. Order: the cards (image variant), characters, sequence, numbers, value.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from unify_posttrain.tasks.episodes import NODE, number
from unify_posttrain.tasks.general_points.answers import Formula, read_cards, read_formula
from unify_posttrain.tasks.general_points.cards import Hand
from unify_posttrain.tasks.general_points.solver import solve

OUTCOMES = (
    "correct_solution",
    "partial_solution",
    "no_solution",
    "incorrect_vision",
    "incorrect_number",
    "illegal_formula",
    "aggregated_error",
)
REWARDED = OUTCOMES[:-1]  # the last is the sum of the others
FLOOR = "reward_floor"

_CHARACTERS = re.compile(r"[0-9+*/()-]*")
_TOKENS = re.compile(r"[0-9]+|[+*/()-]")
_BLANKS = str.maketrans("", "", " \t\r\n")
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: its name, the outcome that it counts as, and the numbers or the text it is about."""

    name: str
    outcome: str
    about: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What the verifier found.

    Attributes:
        outcome: one of OUTCOMES.
        reward: of the turn.
        faults: why it is not right; empty if it is, or if the published evaluation has nothing to say.
        left: the formula that was read; empty if none was.
        other_rule: right under the rule that is not asked for.
    """

    outcome: str
    reward: float
    faults: tuple[Fault, ...]
    left: str
    other_rule: bool = False


@dataclass(frozen=True)
class Rewards:
    """Rewards by outcome, and the least that several faults together can earn."""

    by_outcome: Mapping[str, float]
    floor: float | None

    @classmethod
    def from_node(cls, key: str, node: Any) -> Rewards:
        """From the configuration.

        Raises:
            ValueError: a missing or unknown outcome, or a value that is no number.
        """
        if not isinstance(node, Mapping) or set(node) != {*REWARDED, FLOOR}:
            raise ValueError(f"{NODE}.{key}={node}: give exactly {', '.join((*REWARDED, FLOOR))}")
        floor = node[FLOOR]
        values = {name: number(f"{NODE}.{key}.{name}", node[name]) for name in REWARDED}
        return cls(values, None if floor is None else number(f"{NODE}.{key}.{FLOOR}", floor))

    def of(self, faults: tuple[Fault, ...]) -> tuple[str, float]:
        """The outcome of one or several faults, and its reward."""
        total = sum(self.by_outcome[fault.outcome] for fault in faults)
        if len(faults) == 1:
            return faults[0].outcome, total
        return "aggregated_error", total if self.floor is None else max(total, self.floor)


@dataclass(frozen=True)
class Verifier:
    """Judges answers to hands.

    Attributes:
        rewards: by dialect, `native` and `upstream`.
        upstream_compat: as the published evaluation has it for every style: its dialect, and arithmetic in floats.
        check_rhs: a wrong number after `=` makes a right formula `no_solution`.
        read_characters: of an answer, its last.
    """

    rewards: Mapping[str, Rewards]
    upstream_compat: bool
    check_rhs: bool
    read_characters: int

    def dialect(self, hand: Hand) -> str:
        """`upstream`: blanks are faults, leading zeros are not, the first key counts."""
        return "upstream" if self.upstream_compat or hand.style == "upstream" else "native"

    def judge(self, text: str, hand: Hand, check_cards: bool = False) -> Finding:
        """Judge an answer.

        Args:
            text: the answer.
            hand: what it answers.
            check_cards: the model had to read the cards off an image: other cards end the matter.
        """
        text = text[-self.read_characters :]
        dialect = self.dialect(hand)
        style = "compact" if hand.style == "compact" else dialect
        formula = read_formula(text, style)
        if check_cards and Counter(read_cards(text, style) or ()) != Counter(hand.labels):
            return self._faulty(dialect, (Fault("vision", "incorrect_vision"),), "" if formula is None else formula.left)
        if formula is None:
            return self._faulty(dialect, (Fault("none", "illegal_formula"),), "")
        left = formula.left if dialect == "upstream" else formula.left.translate(_BLANKS)
        if not _CHARACTERS.fullmatch(left):
            return self._faulty(dialect, (Fault("characters", "illegal_formula"),), left)
        tokens = _TOKENS.findall(left)
        if dialect == "native" and any(len(token) > 1 and token[0] == "0" for token in tokens):
            return self._faulty(dialect, (Fault("leading_zero", "illegal_formula"),), left)
        sequence = sequence_faults(tokens)
        used = [int(token) for token in tokens if token.isdigit()]
        faults = (*sequence, *number_faults(used, hand.values))
        if not faults:
            return self._value(dialect, formula, left, tokens, hand)
        other = not sequence and hand.faces > 0 and sorted(used) == sorted(hand.other_values) and self._right(tokens, hand.target)
        return self._faulty(dialect, faults, left, other)

    def _right(self, tokens: list[str], target: int) -> bool:
        return evaluate(tokens, float if self.upstream_compat else Fraction) == target

    def _value(self, dialect: str, formula: Formula, left: str, tokens: list[str], hand: Hand) -> Finding:
        """The formula has no fault: every card once, in a sequence that makes sense."""
        rewards = self.rewards[dialect].by_outcome
        solutions = solve(hand.values, hand.target)
        if self._right(tokens, hand.target):
            if self.check_rhs and formula.right is not None and formula.right.strip() != str(hand.target):
                return self._faulty(dialect, (Fault("right_side", "no_solution", (hand.target,)),), left)
            return Finding("correct_solution", rewards["correct_solution"], (), left)
        begun = solutions.shared_beginning(left)
        if begun == left and evaluate(tokens, Fraction) is None:
            return self._faulty(dialect, (Fault("partial", "partial_solution"),), left)
        if begun == left:  # a solution whose value floats miss: the published evaluation gives nothing and says nothing
            return Finding("no_solution", 0.0, (), left)
        return self._faulty(dialect, (Fault("no_solution", "no_solution", (begun,) if begun else ()),), left)

    def _faulty(self, dialect: str, faults: tuple[Fault, ...], left: str, other: bool = False) -> Finding:
        return Finding(*self.rewards[dialect].of(faults), faults, left, other)


def sequence_faults(tokens: list[str]) -> tuple[Fault, ...]:
    """Every token that cannot stand where it stands. A missing `)` and an operator at the end are none: a value decides there."""
    faults = []
    wanted, depth = True, 0  # a number or `(` is wanted; brackets that are open
    for token in tokens:
        if token == "(":
            if wanted:
                depth += 1
            else:
                faults.append("before_opening")
            wanted = True
        elif token == ")":
            if wanted:
                faults.append("after_closing")
            elif not depth:
                faults.append("unmatched")
            else:
                depth -= 1
            wanted = False
        elif token.isdigit():
            if not wanted:
                faults.append("after_number")
            wanted = False
        else:
            if wanted:
                faults.append("after_operator")
            wanted = True
    return tuple(Fault(name, "illegal_formula") for name in faults)


def number_faults(used: list[int], values: tuple[int, ...]) -> tuple[Fault, ...]:
    """At most two: numbers that are on no card, or else used too often; and cards that are not used."""
    left, given = Counter(values), Counter(used)
    invalid = tuple(dict.fromkeys(each for each in used if each not in left))
    often = tuple(value for value in dict.fromkeys(used) if value in left and given[value] > left[value])
    unused = []
    for value in values:
        if given[value] > 0:
            given[value] -= 1
        else:
            unused.append(value)
    found = [("invalid", invalid)] if invalid else [("too_often", often)] if often else []
    found += [("unused", tuple(unused))] if unused else []
    return tuple(Fault(name, "incorrect_number", about) for name, about in found)


def evaluate(tokens: list[str], kind: Callable[[int], Any]) -> Any:
    """Value of a sequence without faults, from left to right with `*` and `/` first; None if it has none: an open bracket, an
    operator at its end, a leading zero, a division by zero.

    Args:
        tokens: numbers, operators and brackets.
        kind: of the numbers: Fraction, or float.
    """
    numbers: list[Any] = []
    pending: list[str] = []

    def join() -> None:
        right, left = numbers.pop(), numbers.pop()
        numbers.append(_OPERATIONS[pending.pop()](left, right))

    try:
        for token in tokens:
            if token.isdigit():
                if len(token) > 1 and token[0] == "0":
                    return None
                numbers.append(kind(int(token)))
            elif token == "(":
                pending.append(token)
            elif token == ")":
                while pending[-1] != "(":
                    join()
                pending.pop()
            else:
                while pending and pending[-1] != "(" and (pending[-1] in "*/" or token in "+-"):
                    join()
                pending.append(token)
        if "(" in pending or len(pending) >= len(numbers):  # a bracket without its end, an operator without its right side
            return None
        while pending:
            join()
    except ZeroDivisionError:
        return None
    return numbers[0]
