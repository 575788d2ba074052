"""Views: rectangles of pages, the size in which they are shown, and boxes in shown pixels, all in exact arithmetic.

A view is a page and a rectangle of its pixels. It is shown in the size that the model's processor would give it, so that the frame
that the model names boxes in, the image and the number of its tokens are one thing. A box refers to the view shown last; the new
view is cut from the page itself, so that crops of crops compose without loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from unify_posttrain.tasks.episodes import NODE
from unify_posttrain.tasks.vrag.protocol import Box

TOKEN_PX = 28  # side of one token: a patch of 14 pixels, two by two of them merged
LARGEST_RATIO = 200  # of the sides, beyond which the processors refuse an image
_LONG = f"one side is more than {LARGEST_RATIO} times the other"

Rect = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the page; right and bottom do not belong to it
Size = tuple[int, int]  # width, height


class RefusedBoxError(ValueError):
    """A box that no view can be made of; says why, as a part of a sentence."""


@dataclass(frozen=True)
class View:
    """A part of a page.

    Attributes:
        page: id of the page.
        rect: of the page's own pixels.
    """

    page: str
    rect: Rect

    @property
    def size(self) -> Size:
        """In pixels of the page."""
        return self.rect[2] - self.rect[0], self.rect[3] - self.rect[1]


@dataclass(frozen=True)
class Showing:
    """How views are shown and cropped; the keys of the node `environment` of the same names.

    Attributes:
        min_pixels, max_pixels: of a shown image.
        crop_pad_px: by which a box is widened on each side, in shown pixels.
        min_crop_px: least side of a crop, in pixels of the page.
    """

    min_pixels: int
    max_pixels: int
    crop_pad_px: int
    min_crop_px: int

    def __post_init__(self) -> None:
        for key, least in (("min_pixels", TOKEN_PX**2), ("max_pixels", TOKEN_PX**2), ("crop_pad_px", 0), ("min_crop_px", 1)):
            value = getattr(self, key)
            if type(value) is not int or value < least:
                raise ValueError(f"{NODE}.{key}={value!r}: give an integer of at least {least}")
        # Sides are multiples of 28, so that a range that is too narrow holds no size at all for some shapes.
        if self.max_pixels < 2 * self.min_pixels:
            raise ValueError(
                f"{NODE}.max_pixels={self.max_pixels} is less than twice {NODE}.min_pixels={self.min_pixels}, so that not every "
                "shape has a size between them; raise it"
            )

    def size(self, raw: Size) -> Size:
        """Width and height in which pixels of this size are shown: multiples of 28, the shape as it was, the area within bounds.

        Raises:
            RefusedBoxError: sides of which one is more than 200 times the other, here or as they are shown.
        """
        if max(raw) > LARGEST_RATIO * min(raw):
            raise RefusedBoxError(_LONG)
        found = self._size(*raw)
        if max(found) > LARGEST_RATIO * min(found):  # by rounding; the processor would refuse it
            raise RefusedBoxError(_LONG)
        return found

    def _size(self, width: int, height: int) -> Size:
        rounded = round(width / TOKEN_PX) * TOKEN_PX, round(height / TOKEN_PX) * TOKEN_PX
        area = rounded[0] * rounded[1]
        if area > self.max_pixels:
            scale = math.sqrt(width * height / self.max_pixels)
            return max(TOKEN_PX, _down(width / scale)), max(TOKEN_PX, _down(height / scale))
        if area < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width * height))
            return _up(width * scale), _up(height * scale)
        return rounded

    def tokens(self, raw: Size) -> int:
        """That the model makes of a view of this size."""
        width, height = self.size(raw)
        return width * height // TOKEN_PX**2

    def crop(self, view: View, box: Box) -> View:
        """The part of a view that a box in shown pixels names.

        Raises:
            RefusedBoxError: nothing is inside of it, or too little.
        """
        x1, y1, x2, y2 = box
        if not (x1 < x2 and y1 < y2):
            raise RefusedBoxError("the left edge must be left of the right one, and the top above the bottom")
        width, height = self.size(view.size)
        left, top, right, bottom = view.rect
        pad = self.crop_pad_px
        x1, x2 = (min(max(x, Fraction(0)), Fraction(width)) for x in (x1 - pad, x2 + pad))
        y1, y2 = (min(max(y, Fraction(0)), Fraction(height)) for y in (y1 - pad, y2 + pad))
        across, down = Fraction(right - left, width), Fraction(bottom - top, height)
        found = (
            left + math.floor(x1 * across),
            top + math.floor(y1 * down),
            left + math.ceil(x2 * across),
            top + math.ceil(y2 * down),
        )
        cut = View(view.page, found)
        if min(cut.size) < self.min_crop_px:
            raise RefusedBoxError("it is too small, or outside of the image")
        self.size(cut.size)
        return cut

    def check_processor(self, min_pixels: int, max_pixels: int) -> None:
        """Refuse a processor that would give shown images another size, so that boxes would mean something else.

        Args:
            min_pixels, max_pixels: the processor's own bounds.

        Raises:
            ValueError: they do not contain ours.
        """
        if min_pixels > self.min_pixels or max_pixels < self.max_pixels:
            raise ValueError(
                f"the processor of actor_rollout_ref.model.path keeps images within {min_pixels} to {max_pixels} pixels and would "
                f"change those that are shown with {self.min_pixels} to {self.max_pixels}; set {NODE}.min_pixels and "
                f"{NODE}.max_pixels within its bounds"
            )


def _down(side: float) -> int:
    return math.floor(side / TOKEN_PX) * TOKEN_PX


def _up(side: float) -> int:
    return math.ceil(side / TOKEN_PX) * TOKEN_PX
