"""What the reader asks about several answers side by side."""

from __future__ import annotations

from unify_posttrain.rewards.answers.tokens import Tokens, is_sign, outside
from unify_posttrain.rewards.answers.values import Answer, Items, Named


def is_system(answer: Answer) -> bool:
    """Whether it gives values to names."""
    return isinstance(answer, Items) and answer.kind == "list" and all(isinstance(item, Named) for item in answer.items)


def takes_away(tokens: Tokens, place: int) -> bool:
    """Whether a minus stands between sets."""
    return is_sign(tokens[place], "-") and 0 < place < len(tokens) - 1 and tokens[place + 1].text == "\\{"


def spread(tokens: Tokens, answer: Items) -> bool:
    r"""Whether a list in a list is ± in it, or an `or`, and not `p=5,q=2` between semicolons."""
    return not any(isinstance(item, Named) for item in answer.items) and not any(
        is_sign(token, ",", ";") for _, token in outside(tokens)
    )


def unnamed(items: tuple[Answer, ...]) -> list[Answer]:
    r"""`x = 1, 2 or 3` and `x=1 or x=2` give values of one unknown, and its name can go."""
    names = [item.name for item in items if isinstance(item, Named)]
    if len(set(names)) == 1 and isinstance(items[0], Named) and (len(names) == 1 or len(names) == len(items)):
        return [item.value if isinstance(item, Named) else item for item in items]
    return list(items)
