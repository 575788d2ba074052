"""Feedback of texts and images as token ids.

A text is encoded, an image is a block of constant ids around one pad per token that the model makes of it:

    <|vision_start|> <|image_pad|> … <|image_pad|> <|vision_end|>

Texts that follow each other are one text, so that feedback of texts alone has the tokens of that text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Encode = Callable[[str], list[int]]

QWEN_VISION = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")


@dataclass(frozen=True)
class ImageFrame:
    """The ids around an image: of its begin, of one token of it, of its end."""

    begin: int
    pad: int
    end: int

    @classmethod
    def from_names(cls, id_of: Callable[[str], int | None], unknown: int | None, names: Sequence[str] = QWEN_VISION) -> ImageFrame:
        """Look the ids up by name.

        Args:
            id_of: token -> id (`convert_tokens_to_ids`).
            unknown: what `id_of` answers for a token that the tokenizer does not have, beside None.
            names: of begin, pad and end.

        Raises:
            ValueError: the tokenizer lacks one.
        """
        found = [id_of(name) for name in names]
        for name, token in zip(names, found, strict=True):
            if token is None or token == unknown:
                raise ValueError(
                    f"the tokenizer of actor_rollout_ref.model.path has no token {name}, which images are shown with; give a model "
                    "that sees images, e.g. model=qwen2_5_vl_7b"
                )
        return cls(*(int(token) for token in found if token is not None))

    def around(self, tokens: int) -> list[int]:
        """An image of that many tokens.

        Raises:
            ValueError: fewer than one.
        """
        if tokens < 1:
            raise ValueError(f"an image has at least one token, not {tokens}")
        return [self.begin, *[self.pad] * tokens, self.end]


def images_of(parts: Sequence[Any]) -> list[Any]:
    """The parts of feedback that are images: all that are no text."""
    return [part for part in parts if not isinstance(part, str)]


def feedback_ids(parts: Sequence[Any], encode: Encode, frame: ImageFrame | None = None) -> list[int]:
    """Token ids of feedback, without what the chat template puts around it.

    Args:
        parts: texts, and images that say how many tokens they are (`tokens`).
        encode: text -> token ids, adding none.
        frame: of images; None: the model sees none.

    Raises:
        ValueError: an image for a model that sees none.
    """
    ids: list[int] = []
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        if is_text:
            ids += encode("".join(group))
        elif frame is None:
            raise ValueError("feedback shows an image, and the model of this run sees none; take a multimodal model")
        else:
            ids += _blocks(group, frame)
    return ids


def _blocks(images: Iterable[Any], frame: ImageFrame) -> list[int]:
    return [token for image in images for token in frame.around(image.tokens)]
