"""Targets of several turns as tokens: laid out as a rollout with the same answers and the same feedback would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unify_posttrain.chat import target_ids
from unify_posttrain.experience.feedback import Encode, ImageFrame, feedback_ids, images_of

if TYPE_CHECKING:
    from unify_posttrain.experience.transcript import TurnFrame

DROP, TRUNCATE = "drop", "truncate"  # what becomes of a target without room: of `fusion.demo.overlong`


@dataclass(frozen=True)
class Replayed:
    """A target of several turns as tokens: `ids`, `mask` (1 on answers), `spans` of the answers, and the `images` that are shown,
    each with the answers before it in `shown_after`."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    images: tuple[Any, ...] = ()
    shown_after: tuple[int, ...] = ()

    def within(self, room: int, overlong: str) -> Replayed | None:
        """The target, if it has room; else without its last feedback and answer, as often as needed (`truncate`), or None.

        Nothing is cut inside of an answer or of an image.

        Args:
            room: in tokens.
            overlong: DROP or TRUNCATE.
        """
        if len(self.ids) <= room:
            return self
        kept = sum(end <= room for _, end in self.spans)
        if overlong != TRUNCATE or not kept:
            return None
        end, seen = self.spans[kept - 1][1], sum(after < kept for after in self.shown_after)
        return Replayed(self.ids[:end], self.mask[:end], self.spans[:kept], self.images[:seen], self.shown_after[:seen])


def replay(
    messages: Sequence[Mapping[str, Any]],
    frame: TurnFrame,
    encode: Encode,
    eos_id: int,
    eos_text: str | None,
    images: ImageFrame | None = None,
) -> Replayed:
    """A target of one or several turns, laid out as a rollout with these answers and this feedback would be.

    Args:
        messages: assistant, user, assistant, …; the assistant's at both ends. The content of the user may be a sequence of parts,
            texts and images, see :func:`~unify_posttrain.experience.feedback.feedback_ids`.
        frame: of the model's template.
        encode: text -> token ids, adding none.
        eos_id, eos_text: the end token, and how it is written.
        images: the ids around an image; None: the model sees none.

    Raises:
        ValueError: roles that do not take turns, or content that is neither text nor parts.
    """
    roles = [message.get("role") for message in messages]
    expected = ["assistant", "user"] * (len(messages) // 2) + ["assistant"]
    if roles != expected:
        raise ValueError(f"a target of several turns is assistant, user, …, assistant, not {', '.join(map(str, roles)) or 'empty'}")
    ids: list[int] = []
    mask: list[int] = []
    spans: list[tuple[int, int]] = []
    shown: list[Any] = []
    after: list[int] = []
    for message in messages:
        content = message.get("content")
        spoken = message["role"] == "assistant"
        if not isinstance(content, str) and (spoken or not isinstance(content, Sequence)):
            raise ValueError(f"a message of a target must have text content, not {type(content).__name__}")
        if spoken:
            part = target_ids(encode, str(content), eos_id, eos_text)
            spans.append((len(ids), len(ids) + len(part)))
        else:
            parts = [content] if isinstance(content, str) else content
            part = frame.around(feedback_ids(parts, encode, images))
            shown += images_of(parts)
            after += [len(spans)] * len(images_of(parts))
        ids += part
        mask += [int(spoken)] * len(part)
    return Replayed(tuple(ids), tuple(mask), tuple(spans), tuple(shown), tuple(after))
