"""verl's dataset with stable row ids and errors that name file, column and row."""

from __future__ import annotations

import logging
from glob import escape
from pathlib import Path

import datasets
import numpy as np
from verl.utils.dataset.rl_dataset import RLHFDataset

from unify_posttrain.tasks.columns import check_columns, check_row

logger = logging.getLogger(__name__)


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
            # A name with brackets is a pattern to `datasets`, which would read another file.
            frame = datasets.load_dataset(kind, data_files=escape(file))["train"]
        except Exception as error:  # datasets raises a dozen kinds of errors for a file that it cannot parse
            raise ValueError(f"data file {file} cannot be read as {kind}: {error}") from error
        if not len(frame):
            raise ValueError(f"data file {file} holds no rows; prepare it again")
        check_columns(f"data file {file}", frame.column_names)
        check_row(f"data file {file}, row 0", frame[0])
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
