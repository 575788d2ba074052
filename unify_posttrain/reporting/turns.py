"""The turns of an episode for the page: what was answered, coloured by what its tokens are, with verdict, reward and feedback.

A dumped row of an episode has `turn_scores` and `turn_outcomes` beside its segments, a sample of an evaluation `turns`, [{text,
feedback, reward, solved, images}]. Feedback is untrained, so segments fall into turns by themselves; where they do not, the texts
of the turns are shown. Images stand where the model was given them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unify_posttrain.reporting.pictures import UNKNOWN, Pictures, Shown
from unify_posttrain.reporting.run import finite

UNTRAINED, IMAGE = "untrained", "image"
KINDS = ("on", "demo", "hint", UNTRAINED)
SHOWN = "shown_images"  # of a dumped row: where its images come from
# How a dump writes an image: experience.feedback.QWEN_VISION, which needs torch to be imported.
VISION = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
MARK = "<image>"  # where one stands in the feedback of a sample
Part = tuple[str, str, Any]  # kind, text, advantage

_IMAGES = re.compile(f"{re.escape(VISION[0])}(?:{re.escape(VISION[1])})*{re.escape(VISION[2])}")


def parts_of(row: Mapping[str, Any]) -> list[Part]:
    """The segments of a dumped row with their advantages; the whole answer as one where the dump has none, as plain verl's."""
    given, advantage = row.get("segments"), row.get("advantage")
    if not _are_segments(given):
        given = [["on", str(row.get("output", ""))]]
    values = advantage if isinstance(advantage, list) and len(advantage) == len(given) else [advantage] * len(given)
    return [(kind if kind in KINDS else UNTRAINED, text, value) for (kind, text), value in zip(given, values, strict=True)]


def cut_parts(parts: Sequence[Part], room: int, images: Iterator[Shown] | None = None) -> tuple[list[list[Any]], int]:
    """[kind, text, characters cut, advantage or null] of each part that has room, and the room that is left.

    Args:
        parts: where the model was given an image, the text has its marks.
        room: in characters.
        images: taken one by one, in their order; each becomes a segment of the kind `image`, with what is shown as its fifth
            value. None: nothing is known of any.
    """
    segments: list[list[Any]] = []
    for kind, text, value in parts:
        trained = kind in ("on", "demo")
        texts = _IMAGES.split(text) if kind == UNTRAINED else [text]  # a model may spell the marks out, and shows nothing by it
        for number, each in enumerate(texts):
            if number:
                picture = next(images or iter(()), {"caption": "picture", "picture": None, "note": UNKNOWN, "boxes": []})
                segments += [[IMAGE, picture["caption"], 0, None, picture]] if room else []
            segments.append([kind, each[:room], max(0, len(each) - room), finite(value) if trained else None])
            room = max(0, room - len(each))
    lost = sum(segment[2] for segment in segments)
    kept = [segment for segment in segments if segment[1]]
    if kept:
        kept[-1][2] = lost
    return kept, room


def turns_of(row: Mapping[str, Any], room: int, pictures: Pictures | None = None) -> list[dict[str, Any]] | None:
    """{reward, solved, verdict, segments} of each turn; None: the row is no episode, or not one that can be read.

    Args:
        row: of a dump, or a sample of an evaluation.
        room: characters that are shown.
        pictures: that may be shown; None: there are none.
    """
    dumped = _are_segments(row.get("segments"))
    groups = _by_turn(parts_of(row)) if dumped else []
    turns = row.get("turns") if isinstance(row.get("turns"), list) else _scored(row, len(groups))
    if not turns or not all(isinstance(turn, dict) and isinstance(turn.get("text"), str) for turn in turns):
        return None
    origins = row.get(SHOWN) if dumped else [each for turn in turns for each in _origins(turn)]
    if len(groups) != len(turns):
        advantage = row.get("advantage")
        kind = "on" if row.get("row_kind", "rollout") == "rollout" else UNTRAINED
        value = None if isinstance(advantage, list) else advantage
        groups = [[(kind, turn["text"], value), (UNTRAINED, _feedback(turn), None)] for turn in turns]
    images = images_of(origins, pictures)
    shown = []
    for turn, parts in zip(turns, groups, strict=True):
        segments, room = cut_parts(parts, room, images)
        said = {"reward": finite(turn.get("reward")), "solved": turn.get("solved") is True, "segments": segments}
        shown.append({**said, "verdict": str(turn["verdict"]).replace("_", " ")} if turn.get("verdict") else said)
    return shown


def images_of(origins: Any, pictures: Pictures | None) -> Iterator[Shown]:
    """What is shown of the images of an episode, one after another."""
    return iter(() if pictures is None else pictures.of_episode(origins))


def _scored(row: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The turns of a dumped episode: their rewards and verdicts. The last one is right if the episode is."""
    scores, outcomes = row.get("turn_scores"), row.get("turn_outcomes")
    if not isinstance(scores, list) or len(scores) != count:
        return []
    named = outcomes if isinstance(outcomes, list) and len(outcomes) == count else [""] * count
    solved = [False] * (count - 1) + [(finite(row.get("acc")) or 0.0) >= 1]
    return [
        {"text": "", "reward": score, "verdict": outcome, "solved": right}
        for score, outcome, right in zip(scores, named, solved, strict=True)
    ]


def _origins(turn: Mapping[str, Any]) -> list[Any]:
    found = turn.get("images")
    return found if isinstance(found, list) else []


def _feedback(turn: Mapping[str, Any]) -> str:
    """What a turn of a sample was told, with the marks of images that a dump has."""
    said = str(turn.get("feedback") or "")
    return said.replace(MARK, "".join(VISION)) if _origins(turn) else said


def _by_turn(parts: Sequence[Part]) -> list[list[Part]]:
    """A turn ends with the feedback behind it: where something is sampled again."""
    groups: list[list[Part]] = []
    told = True
    for part in parts:
        if part[0] != UNTRAINED and told:
            groups.append([])
            told = False
        elif part[0] == UNTRAINED and groups:
            told = True
        if groups:
            groups[-1].append(part)
    return groups


def _are_segments(parts: Any) -> bool:
    return isinstance(parts, list) and all(
        isinstance(part, list) and len(part) == 2 and all(isinstance(text, str) for text in part) for part in parts
    )
