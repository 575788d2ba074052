"""The small copies of pictures that a page embeds, each once, within limits of one and of all."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unify_posttrain.reporting.settings import Limits


class UnseenError(Exception):
    """Why a picture is not shown: a sentence for the page."""


@dataclass
class Thumbnails:
    """The pictures of one page, each embedded once however often it is shown.

    Attributes:
        limits: of one and of all together.
        uris: data URIs, in the order in which they were first shown.
    """

    limits: Limits
    uris: list[str] = field(default_factory=list)
    _spent: int = 0
    _known: dict[Any, int | str] = field(default_factory=dict)

    def place(self, key: Any, opened: Callable[[], Any]) -> tuple[int | None, str | None]:
        """(place in `uris`, None), or (None, why there is none).

        Args:
            key: equal for equal pictures.
            opened: gives an image of Pillow, no larger than `picture_side`.
        """
        if key not in self._known:
            self._known[key] = self._made(opened)
        found = self._known[key]
        return (None, found) if isinstance(found, str) else (found, None)

    def _made(self, opened: Callable[[], Any]) -> int | str:
        most = self.limits.pictures_bytes
        if self._spent >= most:
            return f"The page holds {most} bytes of pictures, and no more: make it with a larger --pictures-bytes."
        try:
            content = self._encoded(opened())
        except UnseenError as error:
            return str(error)
        if self._spent + len(content) > most:
            self._spent = most  # so that the page does not hold the small ones of what is left
            return self._made(opened)
        self._spent += len(content)
        self.uris.append("data:image/webp;base64," + base64.b64encode(content).decode("ascii"))
        return len(self.uris) - 1

    def _encoded(self, image: Any) -> bytes:
        """As WebP, made smaller until it has few enough bytes."""
        while True:
            buffer = io.BytesIO()
            image.save(buffer, format="WEBP", quality=self.limits.picture_quality)
            if buffer.tell() <= self.limits.picture_bytes:
                return buffer.getvalue()
            if max(image.size) == 1:
                raise UnseenError(f"No picture fits into {self.limits.picture_bytes} bytes: raise --picture-bytes.")
            image = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
