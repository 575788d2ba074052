"""The types of an answer. Answers of different types differ, unless a rule of `comparison` says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

from unify_posttrain.rewards.answers.nodes import Node


@dataclass(frozen=True)
class Quantity:
    """A number or an expression, with the name of its unit (empty: none is given)."""

    node: Node
    unit: str = ""


@dataclass(frozen=True)
class Numeral:
    """Digits to a base that is named."""

    digits: str
    base: int


@dataclass(frozen=True)
class Words:
    """Text: one spelling of it, without case unless it is a single letter, or letters in an order."""

    text: str


@dataclass(frozen=True)
class Choice:
    """A letter of a multiple choice with what stands behind it."""

    letter: str
    rest: Answer | None = None


@dataclass(frozen=True)
class Clock:
    """A time of day; `half` is am, pm or empty."""

    hour: int
    minute: int
    half: str = ""


@dataclass(frozen=True)
class Ratio:
    """Two or more quantities with colons between them."""

    terms: tuple[Answer, ...]


@dataclass(frozen=True)
class Items:
    """Several answers.

    Attributes:
        kind: list (no brackets), tuple, set, union, any or all (statements with `or` or `and` between them), matrix, determinant,
            cases, row (of these three), or beside (numbers with blanks between them).
        items: the answers; of a matrix and of cases its rows.
        brackets: of a tuple, its two.
    """

    kind: str
    items: tuple[Answer, ...]
    brackets: str = ""


@dataclass(frozen=True)
class Named:
    """`name = value`, the names as they are spelled."""

    name: str
    value: Answer


@dataclass(frozen=True)
class Relation:
    """Expressions with relations between them, as many as gaps: =, <, \\le, \\ne, …; > and \\ge are turned round."""

    terms: tuple[Node, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """A set of real numbers: disjoint intervals in ascending order.

    Attributes:
        intervals: see there.
        variable: the name of the unknown that lies in it, empty if none is named.
    """

    intervals: tuple[Interval, ...]
    variable: str = ""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; None is infinity. An end belongs to it if it is closed."""

    low: Node | None
    high: Node | None
    low_closed: bool = False
    high_closed: bool = False


@dataclass(frozen=True)
class Congruence:
    """`value mod modulus`."""

    value: Node
    modulus: Node


@dataclass(frozen=True)
class Figure:
    """An angle, a triangle, a segment: its kind and its corners."""

    kind: str
    corners: str


@dataclass(frozen=True)
class Either:
    """A text that can be read in two ways: 12,345 as a number or as a list."""

    first: Answer
    second: Answer


@dataclass(frozen=True)
class Spelling:
    """What no reader knows; the spelling alone can say that two are equal.

    Attributes:
        text: one spelling.
        contradictory: it claims what is false, as 38 = 28 does; it equals nothing but its own spelling.
    """

    text: str
    contradictory: bool = field(default=False, compare=False)


Answer = (
    Quantity
    | Numeral
    | Words
    | Choice
    | Clock
    | Ratio
    | Items
    | Named
    | Relation
    | Region
    | Congruence
    | Figure
    | Either
    | Spelling
)
