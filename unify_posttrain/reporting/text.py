"""How numbers, names and texts are written on the page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from unify_posttrain.text import one_line, visible


def escape(text: object) -> str:
    """A text for HTML, in one line of visible characters.

    >>> escape("a<b>\\x1b")
    'a&lt;b&gt;\\\\x1b'
    """
    return html.escape(one_line(text))


def shown(value: Any) -> Any:
    """Data for the page's script with every text made visible; the texts keep their lines."""
    if isinstance(value, Mapping):
        return {visible(name): shown(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    return visible(value) if isinstance(value, str) else value


def percent(share: float) -> str:
    """
    >>> percent(0.135), percent(0.91), percent(0.0004)
    ('13.5 %', '91 %', '0 %')
    """
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def number(value: float) -> str:
    """
    >>> number(1234.5), number(0.00012), number(3.0)
    ('1234', '0.00012', '3')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names without what they all begin with, up to the last separator in it.

    >>> short_names(["arithmetic_easy", "arithmetic_ood"])
    {'arithmetic_easy': 'easy', 'arithmetic_ood': 'ood'}
    """
    # The text that the first and the last in order share is shared by all between.
    pairs = zip(min(names, default=""), max(names, default=""), strict=False)
    shared = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs)) if len(names) > 1 else ""
    cut = max(shared.rfind(separator) for separator in "_/-. ") + 1
    return {name: name[cut:] or name for name in names}


def steps(numbers: Sequence[int]) -> str:
    """
    >>> steps([3]), steps([3, 4, 9])
    ('step 3', 'steps 3 to 9')
    """
    return f"step {numbers[0]}" if len(numbers) == 1 else f"steps {min(numbers)} to {max(numbers)}"
