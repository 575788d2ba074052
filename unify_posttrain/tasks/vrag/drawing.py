"""Pages drawn with Pillow: headings, paragraphs, tables and bar charts, with the rectangles of what can be asked about."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from unify_posttrain.tasks.vrag.views import Rect

WIDTH, HEIGHT, MARGIN = 1240, 1240, 90  # pixels of a page
INK, PALE, BAR = (25, 28, 38), (222, 228, 238), (64, 104, 168)
TITLE, HEADING, BODY, SMALL = 30, 46, 32, 24  # sizes of letters
LINE, ROW = 50, 84  # heights
COLUMNS = 56  # letters in a line of text
CHART = 620  # height of a chart


@dataclass
class Drawn:
    """A page.

    Attributes:
        image: of Pillow.
        lines: its text, top to bottom.
        places: name -> rectangle of what has one.
    """

    image: Any
    lines: list[str] = field(default_factory=list)
    places: dict[str, Rect] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text layer."""
        return "\n".join(self.lines)


class PageDrawer:
    """Draws one page from top to bottom.

    Args:
        title: of the document, at the top of each of its pages.
        heading: of the page.
    """

    def __init__(self, title: str, heading: str) -> None:
        from PIL import Image, ImageDraw

        self.page = Drawn(Image.new("RGB", (WIDTH, HEIGHT), "white"))
        self.draw = ImageDraw.Draw(self.page.image)
        self.top = MARGIN
        self._line(title, TITLE, INK)
        self.draw.line((MARGIN, self.top, WIDTH - MARGIN, self.top), fill=BAR, width=4)
        self.top += 40
        self._line(heading, HEADING, BAR)
        self.top += 30

    def paragraph(self, sentence: str) -> None:
        """A sentence with a place of its own, under its own name."""
        begin = self.top
        for line in textwrap.wrap(sentence, COLUMNS):
            self._line(line, BODY, INK)
        self.page.places[sentence] = (MARGIN - 20, begin - 10, WIDTH - MARGIN + 20, self.top)
        self.top += 30

    def table(self, corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[int]]) -> None:
        """A table; each row has a place under its name, from the table's head on down to it."""
        left, right = MARGIN, WIDTH - MARGIN
        first = (right - left) * 2 // 5
        width = (right - left - first) // len(columns)
        for place, (name, values) in enumerate([(corner, columns), *rows.items()]):
            begin = self.top
            if place == 0:
                self.draw.rectangle((left, begin, right, begin + ROW), fill=PALE)
            self._at(left + 16, begin + 20, name, SMALL + 4)
            for column, value in enumerate(values):
                self._at(left + first + column * width + 16, begin + 20, number_text(value), SMALL + 4)
            self.top += ROW
            self.draw.line((left, self.top, right, self.top), fill=INK, width=2)
            self.page.lines.append(" ".join([name, *map(number_text, values)]))
            if place:
                head = begin - place * ROW
                self.page.places[name] = (left - 10, head - 10, right + 10, self.top + 10)

    def bars(self, values: Mapping[str, int]) -> None:
        """A bar chart; each bar has a place under its name, as wide as the letters beside it."""
        bottom, room = self.top + CHART, (WIDTH - 2 * MARGIN) // len(values)
        highest = max(values.values())
        for place, (name, value) in enumerate(values.items()):
            left = MARGIN + place * room
            tall = (CHART - 80) * value // highest
            self.draw.rectangle((left + 30, bottom - tall, left + room - 30, bottom), fill=BAR)
            self._at(left + 30, bottom - tall - 42, number_text(value), SMALL + 4)
            self._at(left + 30, bottom + 14, name, SMALL)
            self.page.lines.append(f"{name} {number_text(value)}")
            self.page.places[name] = (left, bottom - tall - 60, left + room, bottom + 60)
        self.draw.line((MARGIN, bottom, WIDTH - MARGIN, bottom), fill=INK, width=3)
        self.top = bottom + 70

    def _line(self, text: str, size: int, colour: tuple[int, int, int]) -> None:
        self.draw.text((MARGIN, self.top), text, font=font(size), fill=colour)
        self.page.lines.append(text)
        self.top += LINE * size // BODY

    def _at(self, left: int, top: int, text: str, size: int) -> None:
        self.draw.text((left, top), text, font=font(size), fill=INK)


def number_text(value: int | str) -> str:
    """A number with commas between its thousands.

    >>> number_text(12500)
    '12,500'
    """
    return f"{value:,}" if isinstance(value, int) else value


@lru_cache(maxsize=8)
def font(size: int) -> Any:
    """DejaVu Sans, which matplotlib brings, so that pages are the same everywhere."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
