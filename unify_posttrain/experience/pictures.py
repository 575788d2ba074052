"""Which pictures a prompt shows, as plain data: demonstrations and replay buffers hold where a picture is, never its pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]
Reference = Mapping[str, Any]  # the part of a message that shows a picture, as JSON: {"image": path or data URI, …}

INLINE = "data:image/png;base64,"


def image_parts(messages: Messages) -> Iterator[Mapping[str, Any]]:
    """The parts {type: image, …} of a prompt, in order."""
    for message in messages:
        if not isinstance(message["content"], str) and message["content"] is not None:
            yield from (part for part in message["content"] if part.get("type") == "image")


def picture_references(messages: Messages) -> tuple[Reference, ...]:
    """What a prompt shows, in a form that JSON holds. A picture that is no file but an object in memory is kept whole, as PNG."""
    return tuple(_reference(part) for part in image_parts(messages))


def reference(image: Any) -> Reference:
    """A picture in memory as a reference, as PNG."""
    return {"image": _inline(image)}


def _reference(part: Mapping[str, Any]) -> Reference:
    kept = {name: value for name, value in part.items() if name not in ("type", "bytes", "image") and value is not None}
    image = part["image"]
    return {**kept, "image": image if isinstance(image, str) else _inline(image)}


def _inline(image: Any) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")  # lossless: the same pixels come back
    return INLINE + base64.b64encode(buffer.getvalue()).decode("ascii")
