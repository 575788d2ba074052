"""verl's dataset with stable row ids and errors that name file, column and row."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from verl.utils.dataset.rl_dataset import RLHFDataset

logger = logging.getLogger(__name__)

REQUIRED_COLUMNS = ("prompt", "data_source", "reward_model")


class FusionDataset(RLHFDataset):
    """Adds `row_id`, the position of a prompt in the concatenated files before sampling and filtering: every buffer, cache and
    random draw of this package is keyed on it.

    Raises:
        ValueError: an unreadable or empty file, a missing column, a malformed row, or nothing left after the length filter.
    """

    def _read_files_and_tokenize(self) -> None:
        frames = [self._read(file) for file in self.data_files]
        frame = datasets.concatenate_datasets(frames)
        frame = frame.add_column("row_id", np.arange(len(frame)))
        if 0 < self.max_samples < len(frame):
            picked = np.arange(self.max_samples)
            if self.shuffle:
                picked = np.random.default_rng(self.seed).choice(len(frame), size=self.max_samples, replace=False)
            frame = frame.select(picked.tolist())
        self.dataframe = self._within_length(frame)

    def _read(self, file: str) -> datasets.Dataset:
        kind = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}.get(Path(file).suffix)
        if kind is None:
            raise ValueError(f"data file {file}: format must be .parquet, .json or .jsonl")
        try:
            frame = datasets.load_dataset(kind, data_files=file)["train"]
        except Exception as error:  # datasets raises a dozen kinds of errors for a file that it cannot parse
            raise ValueError(f"data file {file} cannot be read as {kind}: {error}") from error
        if not len(frame):
            raise ValueError(f"data file {file} holds no rows; prepare it again")
        absent = [column for column in REQUIRED_COLUMNS if column not in frame.column_names]
        if absent:
            raise ValueError(f"data file {file}: column {absent[0]!r} is missing; present: {', '.join(frame.column_names)}")
        check_row(frame[0], file, 0)
        return frame

    def _within_length(self, frame: datasets.Dataset) -> datasets.Dataset:
        """Drop prompts over data.max_prompt_length, or refuse them if data.filter_overlong_prompts is off. Never cut one."""
        allowed = self.filter_overlong_prompts
        self.filter_overlong_prompts = True
        kept = self.maybe_filter_out_long_prompts(frame)
        self.filter_overlong_prompts = allowed
        dropped = sorted(set(frame["row_id"]) - set(kept["row_id"]))
        limit = f"data.max_prompt_length={self.max_prompt_length}"
        if dropped and not allowed:
            raise ValueError(
                f"the prompt of row {dropped[0]} (and {len(dropped) - 1} more) is longer than {limit}; raise the limit, or set "
                "data.filter_overlong_prompts=true to leave such rows out"
            )
        if not len(kept):
            raise ValueError(f"every one of {len(frame)} prompts is longer than {limit}; raise the limit")
        if dropped:
            logger.warning("%d of %d prompts are longer than %s and are left out", len(dropped), len(frame), limit)
        self.dropped_prompts = len(dropped)
        return kept


def check_row(row: Mapping[str, Any], file: str, number: int) -> None:
    """The published schema: prompt list<{role, content}>, reward_model {ground_truth, …}, data_source text."""
    where = f"data file {file}, row {number}"
    prompt = row["prompt"]
    messages = isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, str) and len(prompt)
    if not messages or any(not isinstance(m, Mapping) or not {"role", "content"} <= set(m) for m in prompt):
        raise ValueError(f"{where}: column 'prompt' must be a non-empty list of {{role, content}}, not {str(prompt)[:80]!r}")
    if not isinstance(row["reward_model"], Mapping) or "ground_truth" not in row["reward_model"]:
        raise ValueError(f"{where}: column 'reward_model' must hold a ground_truth, not {str(row['reward_model'])[:80]!r}")
    if not isinstance(row["data_source"], str):
        raise ValueError(f"{where}: column 'data_source' must be text, not {row['data_source']!r}")
