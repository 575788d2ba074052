"""The turns of an episode for the page: what was answered, coloured by what its tokens are, with verdict, reward and feedback.

A dumped row of an episode has `turns`, [{text, feedback, reward, solved}], beside its segments. Feedback is untrained, so the
segments of a trained row fall into turns by themselves; where they do not, the texts of the turns are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unify_posttrain.reporting.run import finite

UNTRAINED = "untrained"
KINDS = ("on", "demo", "hint", UNTRAINED)
Part = tuple[str, str, Any]  # kind, text, advantage


def parts_of(row: Mapping[str, Any]) -> list[Part]:
    """The segments of a dumped row with their advantages; the whole answer as one where the dump has none, as plain verl's."""
    given, advantage = row.get("segments"), row.get("advantage")
    if not _are_segments(given):
        given = [["on", str(row.get("output", ""))]]
    values = advantage if isinstance(advantage, list) and len(advantage) == len(given) else [advantage] * len(given)
    return [(kind if kind in KINDS else UNTRAINED, text, value) for (kind, text), value in zip(given, values, strict=True)]


def cut_parts(parts: Sequence[Part], room: int) -> tuple[list[list[Any]], int]:
    """[kind, text, characters cut, advantage or null] of each part that has room, and the room that is left."""
    segments = []
    for kind, text, value in parts:
        trained = kind in ("on", "demo")
        segments.append([kind, text[:room], max(0, len(text) - room), finite(value) if trained else None])
        room = max(0, room - len(text))
    lost = sum(segment[2] for segment in segments)
    kept = [segment for segment in segments if segment[1]]
    if kept:
        kept[-1][2] = lost
    return kept, room


def turns_of(row: Mapping[str, Any], room: int) -> list[dict[str, Any]] | None:
    """{reward, solved, segments} of each turn; None: the row is no episode, or not one that can be read.

    Args:
        row: of a dump, or a sample of an evaluation.
        room: characters that are shown.
    """
    turns = row.get("turns")
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, dict) and isinstance(turn.get("text"), str) for turn in turns)
    ):
        return None
    groups = _by_turn(parts_of(row)) if _are_segments(row.get("segments")) else []
    if len(groups) != len(turns):
        advantage = row.get("advantage")
        kind = "on" if row.get("row_kind", "rollout") == "rollout" else UNTRAINED
        value = None if isinstance(advantage, list) else advantage
        groups = [[(kind, turn["text"], value), (UNTRAINED, str(turn.get("feedback") or ""), None)] for turn in turns]
    shown = []
    for turn, parts in zip(turns, groups, strict=True):
        segments, room = cut_parts(parts, room)
        shown.append({"reward": finite(turn.get("reward")), "solved": turn.get("solved") is True, "segments": segments})
    return shown


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
