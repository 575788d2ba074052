"""Hands as pictures: cards in a row on green, each with its label and its suit, at the places that published pictures have.

A hand with its suits is always the same picture, to the byte. Labels and suits are letters of DejaVu Sans, which comes with
matplotlib.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unify_posttrain.tasks.general_points.cards import RED, SIGNS

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWING_FORMAT = 1  # raise it when equal hands give other pictures: files of the old ones then get other names
RESOLUTIONS = range(84, 2801)  # pixels of a side: three image tokens of Qwen2.5-VL, to a hundred
SLOTS = 4  # places for cards, whatever a hand has
MARGIN = 5  # pixels on the left

TABLE, PAPER, EDGE = (0, 128, 0), (255, 255, 255), (60, 60, 60)
INK = {True: (200, 0, 0), False: (0, 0, 0)}  # red, black
LABEL, SIGN, CORNER = 0.42, 0.62, 0.09  # height of the label, of the suit, and radius of the corners, as parts of a card's width


def check_resolution(key: str, value: Any) -> int:
    """Pixels of a picture's side; ValueError names the key."""
    if type(value) is not int or value not in RESOLUTIONS:
        raise ValueError(
            f"{key}={value!r}: give the pixels of a picture's side, an integer from {RESOLUTIONS[0]} to {RESOLUTIONS[-1]}"
        )
    return value


def card_size(resolution: int) -> tuple[int, int]:
    """Width and height of a card.

    >>> card_size(1200), card_size(448), card_size(300)
    ((270, 378), (100, 140), (67, 93))
    """
    width = resolution * 9 // (10 * SLOTS)
    return width, 7 * width // 5


def card_places(resolution: int) -> list[tuple[int, int]]:
    """Left and top of each card.

    >>> card_places(448)
    [(5, 154), (115, 154), (225, 154), (335, 154)]
    """
    width, height = card_size(resolution)
    return [(MARGIN + 11 * slot * width // 10, (resolution - height) // 2) for slot in range(SLOTS)]


def draw(labels: Sequence[str], suits: Sequence[str], resolution: int) -> Image:
    """An RGB picture of resolution x resolution pixels.

    Args:
        labels, suits: of up to four cards.
        resolution: pixels of a side.
    """
    from PIL import Image

    picture = Image.new("RGB", (resolution, resolution), TABLE)
    for label, suit, place in zip(labels, suits, card_places(resolution), strict=False):
        picture.paste(_card(label, suit, card_size(resolution)), place)
    return picture


def fingerprint(labels: Sequence[str], suits: Sequence[str], resolution: int) -> str:
    """A name for the picture: equal for equal pictures."""
    said = repr((DRAWING_FORMAT, resolution, tuple(labels), tuple(suits)))
    return hashlib.sha256(said.encode()).hexdigest()[:20]


@lru_cache(maxsize=256)
def _card(label: str, suit: str, size: tuple[int, int]) -> Image:
    """The label in two corners, one of them upside down, and the suit in the middle."""
    from PIL import Image, ImageDraw

    width, height = size
    card, ink = Image.new("RGB", size, TABLE), INK[suit in RED]
    pen = ImageDraw.Draw(card)
    pen.rounded_rectangle((0, 0, width - 1, height - 1), radius=round(CORNER * width), fill=PAPER, outline=EDGE)
    pen.text((width / 2, height / 2), SIGNS[suit], fill=ink, font=_font(SIGN, width), anchor="mm")
    corner = Image.new("RGB", (width // 2, height // 3), PAPER)
    gap = max(1, width // 20)
    ImageDraw.Draw(corner).text((0, 0), label, fill=ink, font=_font(LABEL if len(label) == 1 else LABEL * 0.85, width), anchor="lt")
    box = corner.convert("L").point(lambda value: 255 - value).getbbox() or (0, 0, 1, 1)
    corner = corner.crop(box)
    card.paste(corner, (gap + 1, gap + 1))
    card.paste(corner.rotate(180), (width - corner.width - gap - 1, height - corner.height - gap - 1))
    return card


@lru_cache(maxsize=32)
def _font(share: float, width: int) -> Any:
    from PIL import ImageFont

    # The basic layout is in every build of Pillow; the other one depends on a library that may be absent.
    return ImageFont.truetype(_font_file(), max(1, round(share * width)), layout_engine=ImageFont.Layout.BASIC)


def _font_file() -> str:
    found = find_spec("matplotlib")  # imported by nobody here: only a file of it is read
    folders = [] if found is None else list(found.submodule_search_locations or ())
    path = Path(folders[0] if folders else "") / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.is_file():
        raise ValueError(f"the letters of cards are those of matplotlib, and {path} is not there; install matplotlib again")
    return str(path)
