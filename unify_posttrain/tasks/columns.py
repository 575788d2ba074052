"""The columns that every data file needs, for training and for evaluation: verl's `prompt`, `data_source` and `reward_model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

REQUIRED_COLUMNS = ("prompt", "data_source", "reward_model")
MODEL_STYLE = "model"  # reward_model.style of rows that a reward model scores, without a ground truth
_CONVERT = "python -m unify_posttrain.prepare task=convert makes messages of it"


def check_columns(where: str, present: Sequence[str], prompt: str = "prompt") -> None:
    """Raise ValueError if a required column is absent; `where` names the file, `prompt` the column of prompts."""
    absent = [column for column in (prompt, *REQUIRED_COLUMNS[1:]) if column not in present]
    if absent:
        raise ValueError(f"{where}: column {absent[0]!r} is missing; present: {', '.join(present)}")


def check_row(where: str, row: Mapping[str, Any], prompt: str = "prompt") -> None:
    """Raise ValueError unless the prompt is list<{role, content}> that says something, reward_model {ground_truth, …} with one
    (rows of style `model` need none), data_source text and extra_info a mapping, if it is there; `where` names file and row."""
    fault = _prompt_fault(row.get(prompt))
    if fault is not None:
        raise ValueError(f"{where}: column {prompt!r} must be a non-empty list of {{role, content}}, {fault}")
    reward, source = row.get("reward_model"), row.get("data_source")
    if not isinstance(reward, Mapping) or "ground_truth" not in reward:
        raise ValueError(f"{where}: column 'reward_model' must hold a ground_truth, not {str(reward)[:80]!r}")
    if reward["ground_truth"] is None and reward.get("style") != MODEL_STYLE:
        raise ValueError(
            f"{where}: reward_model.ground_truth is null; give one, leave the row out, or set reward_model.style to {MODEL_STYLE} "
            "if a reward model scores it"
        )
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"{where}: column 'data_source' must be text, not {source!r}; it names the set that a score counts for")
    if not isinstance(row.get("extra_info"), Mapping | None):
        raise ValueError(f"{where}: column 'extra_info' must be a mapping or null, not {str(row['extra_info'])[:80]!r}")


def _prompt_fault(prompt: Any) -> str | None:
    """The end of a sentence."""
    if isinstance(prompt, str):
        return f"not text {prompt[:60]!r}; {_CONVERT}"
    if not isinstance(prompt, Sequence | np.ndarray) or isinstance(prompt, bytes):
        return "not null" if prompt is None else f"not {type(prompt).__name__} {str(prompt)[:80]!r}"
    if not len(prompt):
        return "and is empty"
    for number, message in enumerate(prompt):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            return f"not {str(prompt)[:80]!r}"
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not role:
            return f"but message {number} has the role {role!r}"
        if content is None and not message.get("tool_calls"):
            return f"but message {number} ({role}) has no content (null)"
        if not _is_content(content):
            return f"but message {number} ({role}) has content of type {type(content).__name__}: {str(content)[:60]!r}"
    return None if _says(prompt[-1]["content"]) else "but its last message is empty"


def _is_content(content: Any) -> bool:
    """Text, or the parts that vision models take; None is judged elsewhere."""
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, Sequence | np.ndarray) and all(isinstance(part, Mapping) for part in content)


def _says(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else content is not None and len(content) > 0
