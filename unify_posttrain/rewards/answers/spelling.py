"""One spelling of an answer for majority votes and tables, and what can be said of it without another one."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from unify_posttrain.rewards.answers.algebra import constant
from unify_posttrain.rewards.answers.cleaning import clean
from unify_posttrain.rewards.answers.evaluation import OutsideError, TooLargeError, UndefinedError, UnknownError, evaluate
from unify_posttrain.rewards.answers.nodes import Node
from unify_posttrain.rewards.answers.reader import MAX_CHARACTERS, read
from unify_posttrain.rewards.answers.tokens import UnreadError, joined, lex
from unify_posttrain.rewards.answers.values import Answer, Choice, Either, Items, Named, Quantity, Ratio, Spelling, Words

MAX_BITS = 1000  # of a number that is spelled out


def spelled(text: str) -> str:
    """One spelling: equal numbers of one unit are spelled alike, so are words; empty if the text says nothing."""
    if len(text) > MAX_CHARACTERS:
        return text.strip()
    answer = read(text)
    while isinstance(answer, Named | Either):
        answer = answer.value if isinstance(answer, Named) else answer.first
    if isinstance(answer, Quantity) and isinstance(value := constant(answer.node), Fraction) and _short(value):
        return f"{value}{answer.unit}"
    if isinstance(answer, Words):
        return answer.text
    if isinstance(answer, Choice):
        return answer.letter
    if says_nothing(answer):
        return ""
    try:
        return joined(lex(clean(text)))
    except UnreadError:
        return " ".join(clean(text).split())


def _short(value: Fraction) -> bool:
    return max(value.numerator.bit_length(), value.denominator.bit_length()) < MAX_BITS


def says_nothing(answer: Answer) -> bool:
    """Whether nothing is left of a text without layout."""
    return isinstance(answer, Spelling) and not answer.text


def too_large(answer: Answer) -> bool:
    """Whether an answer holds a number that cannot be computed, such as 9^{9^{9^9}}."""
    return any(_too_large(node) for node in _nodes(answer))


def _nodes(answer: Answer) -> Iterator[Node]:
    if isinstance(answer, Quantity):
        yield answer.node
    elif isinstance(answer, Named):
        yield from _nodes(answer.value)
    elif isinstance(answer, Items | Ratio):
        for item in answer.items if isinstance(answer, Items) else answer.terms:
            yield from _nodes(item)


def _too_large(node: Node) -> bool:
    try:
        evaluate(node, {})
    except TooLargeError:
        return True
    except (UndefinedError, UnknownError, OutsideError, KeyError):
        pass
    return any(map(_too_large, node.parts))
