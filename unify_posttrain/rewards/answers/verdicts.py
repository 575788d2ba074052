"""Verdicts on two answers: True, False, which is a proof, or None: it cannot be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unify_posttrain.rewards.answers.values import Answer

Verdict = bool | None
Same = Callable[[Answer, Answer], Verdict]


def any_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Yes if one is, no if all are."""
    return True if True in verdicts else None if None in verdicts else False


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """No if one is, yes if all are."""
    return False if False in verdicts else None if None in verdicts else True


def pairwise(left: Sequence[Answer], right: Sequence[Answer], ordered: bool, same: Same) -> Verdict:
    """Whether two rows of answers are equal one by one, in their order or in any."""
    if len(left) != len(right):
        return False
    if ordered:
        return all_of([same(a, b) for a, b in zip(left, right, strict=True)])
    rest = list(right)
    unknown = False
    for a in left:
        verdicts = [same(a, b) for b in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True
