"""Tables and numbers of the pages that analyses write."""

from __future__ import annotations

from collections.abc import Sequence

from unify_posttrain.output import clean_line

NONE = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells hold neither line ends nor characters that act."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(clean_line(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def number(value: float | None, digits: int = 1) -> str:
    """With so many digits behind the point; `-` for None."""
    return NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in %; `-` for None."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def page(title: str, parts: Sequence[str], figures: Sequence[str]) -> str:
    """A Markdown page with its figures at the end."""
    return "\n\n".join([f"# {title}", *filter(None, parts), *(f"![{name}]({name})" for name in figures)]) + "\n"
