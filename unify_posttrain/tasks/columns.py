"""The columns that every data file needs, for training and for evaluation: verl's `prompt`, `data_source` and `reward_model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

REQUIRED_COLUMNS = ("prompt", "data_source", "reward_model")


def check_columns(where: str, present: Sequence[str]) -> None:
    """Raise ValueError if a required column is absent; `where` names the file."""
    absent = [column for column in REQUIRED_COLUMNS if column not in present]
    if absent:
        raise ValueError(f"{where}: column {absent[0]!r} is missing; present: {', '.join(present)}")


def check_row(where: str, row: Mapping[str, Any]) -> None:
    """Raise ValueError unless prompt is list<{role, content}>, reward_model {ground_truth, …}, data_source text; `where` names
    the file and the row."""
    prompt, reward, source = (row[column] for column in ("prompt", "reward_model", "data_source"))
    messages = isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, str) and len(prompt)
    if not messages or any(not isinstance(message, Mapping) or not {"role", "content"} <= set(message) for message in prompt):
        raise ValueError(f"{where}: column 'prompt' must be a non-empty list of {{role, content}}, not {str(prompt)[:80]!r}")
    if not isinstance(reward, Mapping) or "ground_truth" not in reward:
        raise ValueError(f"{where}: column 'reward_model' must hold a ground_truth, not {str(reward)[:80]!r}")
    if not isinstance(source, str) or not source:
        raise ValueError(f"{where}: column 'data_source' must be text, not {source!r}")
