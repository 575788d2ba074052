"""Rewards for the form of a response alone, in verl's signature; one pass over the text, no process needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from unify_posttrain.rewards import extraction

_TAGS = re.compile(r"(?:<think>)?(?:(?!</?think>|</?answer>)[\s\S])*</think>\s*<answer>[\s\S]*</answer>")


def think_format(text: str) -> bool:
    """Exactly one thinking block, before a box: `…</think> … \\boxed{…}`, the opening tag being the prompt's or the response's."""
    opened = text.count("<think>")
    closed = text.count(extraction.THINK_END) == 1 and (opened == 0 or (opened == 1 and text.lstrip().startswith("<think>")))
    return closed and extraction.last_boxed(extraction.after_last_think(text) or "") is not None


def tag_format(text: str) -> bool:
    """Thinking, then one `<answer>` block that ends the text (UFT, DeepSeek-R1-Zero)."""
    return bool(_TAGS.fullmatch(text.strip())) and text.count("<answer>") == 1 and text.count("</answer>") == 1


FORMS: dict[str, Callable[[str], bool]] = {"think": think_format, "tags": tag_format}


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, *, form: str, **_: Any
) -> dict[str, float]:
    """1 if the response has the form, else 0; data source and ground truth are not looked at.

    Args:
        form: `think` (see :func:`think_format`) or `tags` (see :func:`tag_format`), by `reward_kwargs.form`.

    Raises:
        ValueError: an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"reward.custom_reward_function.reward_kwargs.form={form!r} is unknown; choose one of {', '.join(FORMS)}")
    right = float(FORMS[form](solution_str))
    return {"score": right, "acc": right}
