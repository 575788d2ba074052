"""A judge that hangs, crashes or says what it is told, in the place of the graders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def judge_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """By the words of the text; the version 7 finds everything right."""
    if "text" not in item:
        return {"gold_ok": float(item["gold"] != "ungradable"), "seconds": 0.0}
    if "hang" in item["text"]:
        while True:
            pass
    if "crash" in item["text"]:
        os._exit(3)
    right = item["by"] == 7 or "right" in item["text"]
    return {"acc": float(right), "pred": "" if "empty" in item["text"] else "an answer", "gold_ok": 1.0, "seconds": 0.25}
