"""Views as images: what a model is shown of a page, and which view an image shows."""

from __future__ import annotations

from pathlib import Path

from unify_posttrain.tasks.turns import ImagePart
from unify_posttrain.tasks.vrag.corpus import cut_image
from unify_posttrain.tasks.vrag.settings import VragSettings
from unify_posttrain.tasks.vrag.views import View


def show(view: View, image: Path, own: VragSettings) -> ImagePart:
    """A view as the model is shown it.

    Args:
        view: of a page.
        image: of the page.
        own: settings.

    Raises:
        PageError: the image cannot be read.
        RefusedBoxError: the view has no size to be shown in.
    """
    size = own.showing.size(view.size)
    pixels = cut_image(image, view.rect, size, own.largest_page_px)
    return ImagePart(pixels, own.showing.tokens(view.size), {"page_id": view.page, "rect": list(view.rect)})


def view_of(part: ImagePart) -> View:
    """The view that an image shows."""
    left, top, right, bottom = part.origin["rect"]
    return View(str(part.origin["page_id"]), (left, top, right, bottom))
