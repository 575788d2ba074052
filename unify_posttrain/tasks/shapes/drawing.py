"""Scenes as pictures: shapes of one colour each on white, with places and sizes that vary a little within their cells.

What varies follows from the scene alone, so a scene is always the same picture.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from unify_posttrain.tasks.shapes.scenes import Scene

if TYPE_CHECKING:
    from PIL.Image import Image

RGB = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (40, 70, 220), "yellow": (240, 200, 0)}
BACKGROUND = (255, 255, 255)
SMALLEST, LARGEST = 0.55, 0.8  # side of a shape, as a part of its cell's
DRAWING_FORMAT = 1  # raise it when equal scenes give other pictures: files of the old ones then get other names


def draw(scene: Scene, cell: int) -> Image:
    """An RGB picture of (side x cell) pixels in both directions.

    Args:
        scene: what it shows.
        cell: pixels of a cell's side.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (scene.side * cell, scene.side * cell), BACKGROUND)
    pen, generator = ImageDraw.Draw(image), random.Random(fingerprint(scene, cell))
    for place, kind in enumerate(scene.cells):
        size = generator.uniform(SMALLEST, LARGEST) * cell
        row, column = divmod(place, scene.side)
        x, y = (start * cell + generator.uniform(0, cell - size - 1) for start in (column, row))
        if kind is None:
            continue
        colour, shape = kind
        box = (x, y, x + size, y + size)
        if shape == "circle":
            pen.ellipse(box, fill=RGB[colour])
        else:
            pen.rectangle(box, fill=RGB[colour])
    return image


def fingerprint(scene: Scene, cell: int) -> str:
    """A name for the picture: equal for equal pictures, whatever is asked about them."""
    said = repr((DRAWING_FORMAT, cell, scene.cells))
    return hashlib.sha256(said.encode()).hexdigest()[:20]
