"""The last line of a worked solution, ``answer <text>``, and how to find it in what a model wrote."""

from __future__ import annotations

MARKER = "answer"


def final_answer(text: str) -> str | None:
    """What follows ``answer `` up to the end of ``text``, or None if there is no single answer.

    The word has to occur once, at the start of a line and followed by a space: several answers are hedging, even if they
    agree. What follows is returned as it is, newlines and all, so that a checker can insist on the text ending there.
    Linear in ``len(text)``.
    """
    before, found, after = text.rpartition(f"{MARKER} ")
    single = text.count(MARKER) == 1 and (before == "" or before.endswith("\n"))
    return after if found and single else None


def outcome(right: bool) -> dict[str, float]:
    """The result of a verifier for verl: ``{"score": 1.0 | 0.0, "acc": 1.0 | 0.0}``, equal to each other."""
    return {"score": float(right), "acc": float(right)}
