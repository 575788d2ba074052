"""verl's dataset with stable row ids and errors that name file, column and row."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint
from verl.utils.dataset.rl_dataset import RLHFDataset

from unify_posttrain.backend.seams import message_key
from unify_posttrain.chat import ChatTemplate, TemplateRefusedError
from unify_posttrain.experience.pictures import picture_references
from unify_posttrain.preparation.local_rows import rows_of
from unify_posttrain.preparation.rows import RowFault
from unify_posttrain.rollout.pictures import PictureReader, open_pictures
from unify_posttrain.startup.arrow_types import plain_type
from unify_posttrain.tasks.columns import REQUIRED_COLUMNS, check_columns, check_row
from unify_posttrain.untrusted.picture_paths import PictureError, placed_parts, placed_picture

logger = logging.getLogger(__name__)

WORTH_REMEMBERING = 5000  # rows from which `datasets` keeps the lengths of prompts for the next start
ROWS_AT_ONCE = 1000  # looked at together; says nothing about the result


@dataclass(frozen=True)
class Pictures:
    """The most that one prompt shows: pictures, and tokens of them as the model sees them (videos apart)."""

    most: int = 0
    tokens: int = 0


class FusionDataset(RLHFDataset):
    """Adds `row_id`, the position of a prompt in the concatenated files before sampling and filtering: every buffer, cache and
    random draw of this package is keyed on it.

    Raises:
        ValueError: an unreadable or empty file, a missing column, a malformed row, a prompt that the chat template does not take,
            or nothing left after the length filter.
    """

    def _read_files_and_tokenize(self) -> None:
        frames = [self._read(file) for file in self.data_files]
        self._ends = list(accumulate(map(len, frames)))
        frame = self._together(frames)
        frame = frame.add_column("row_id", np.arange(len(frame)))
        if 0 < self.max_samples < len(frame):
            picked = np.arange(self.max_samples)
            if self.shuffle:
                picked = np.random.default_rng(self.seed).choice(len(frame), size=self.max_samples, replace=False)
            frame = frame.select(picked.tolist())
        self._check_rows(frame)
        self.dataframe = self._within_length(frame)

    def place(self, row_id: int) -> str:
        """The file of a row and its position there, for messages."""
        number = bisect_right(self._ends, row_id)
        return f"data file {self.data_files[number]}, row {row_id - (self._ends[number - 1] if number else 0)}"

    def _file(self, row_id: int) -> str:
        return str(self.data_files[bisect_right(self._ends, row_id)])

    def _read(self, file: str) -> datasets.Dataset:
        suffix = Path(file).suffix
        if suffix not in (".parquet", ".json", ".jsonl"):
            raise ValueError(f"data file {file}: format must be .parquet, .json or .jsonl")
        frame = _read_parquet(file) if suffix == ".parquet" else _read_json(file)
        if not len(frame):
            raise ValueError(f"data file {file} holds no rows; prepare it again")
        check_columns(f"data file {file}", frame.column_names, self.prompt_key)
        for name, field in zip(frame.column_names, frame.features.arrow_schema, strict=True):
            plain = plain_type(field.type)
            if plain != field.type:  # large and plain kinds of text and lists, which several files may differ in
                frame = frame.cast_column(name, datasets.Features.from_arrow_schema(pa.schema([(name, plain)]))[name])
        return frame

    def _together(self, frames: list[datasets.Dataset]) -> datasets.Dataset:
        try:
            return datasets.concatenate_datasets(frames)
        except ValueError as error:
            for file, frame in zip(self.data_files[1:], frames[1:], strict=True):
                for name in frame.column_names:
                    first, other = frames[0].features.get(name), frame.features[name]
                    if first is not None and first != other:
                        raise ValueError(
                            f"data files {self.data_files[0]} and {file} differ in the type of column {name!r}: {first} and "
                            f"{other}; write both alike, e.g. by preparing both"
                        ) from error
            raise ValueError(f"data files {', '.join(map(str, self.data_files))} cannot be joined: {error}") from error

    def _check_rows(self, frame: datasets.Dataset) -> None:
        """Look at every row: at what every task needs, and at images that no processor would read."""
        columns = [column for column in (self.prompt_key, *REQUIRED_COLUMNS[1:], "extra_info") if column in frame.column_names]
        for row in self._plain_rows(frame, tuple(columns)):
            check_row(self.place(row["row_id"]), row, self.prompt_key)
            if self.processor is None and any(_shows(message["content"]) for message in row[self.prompt_key]):
                raise ValueError(
                    f"{self.place(row['row_id'])}: column {self.prompt_key!r} shows an image or a video, and the model has no "
                    "processor for them; take a multimodal model, or leave the row out"
                )
        if self.processor is not None:
            return
        for column in {self.image_key, self.video_key} & set(frame.column_names):
            for row in self._plain_rows(frame.cast_column(column, _undecoded(frame.features[column])), (column,)):
                if row[column]:
                    raise ValueError(
                        f"{self.place(row['row_id'])}: column {column!r} holds {_number(row[column])}, and the model has no "
                        f"processor for them; take a multimodal model, or leave the column {column!r} out of the file"
                    )

    @staticmethod
    def _plain_rows(frame: datasets.Dataset, columns: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        chosen = frame.select_columns([*columns, "row_id"]).with_format("arrow")
        for table in chosen.iter(batch_size=ROWS_AT_ONCE):
            yield from table.to_pylist()

    def _within_length(self, frame: datasets.Dataset) -> datasets.Dataset:
        """Drop prompts over data.max_prompt_length, or refuse them if data.filter_overlong_prompts is off. Never cut one.

        verl counts a prompt that cannot be rendered as too long; here it is an error that says why it cannot.
        """
        few = len(frame) < WORTH_REMEMBERING
        counted = frame.map(
            self._lengths,
            # `datasets` starts a process for one, too.
            num_proc=self.num_workers if self.num_workers and self.num_workers > 1 else None,
            remove_columns=frame.column_names,
            load_from_cache_file=self.processor is None and not few,  # a picture may have changed since
            keep_in_memory=few,
            # `datasets` would make one of all that the method can reach, tokenizer and configuration: half a second.
            new_fingerprint=generate_random_fingerprint() if few else None,
            desc=f"prompts of at most {self.max_prompt_length} tokens",
        )
        fits = np.asarray(counted["tokens"]) <= self.max_prompt_length
        kept, row_ids = frame.select(np.flatnonzero(fits)), np.asarray(frame["row_id"])
        dropped = row_ids[~fits].tolist()
        self.pictures = Pictures(*(int(np.asarray(counted[name])[fits].max(initial=0)) for name in ("pictures", "picture_tokens")))
        limit = f"data.max_prompt_length={self.max_prompt_length}"
        if dropped and not self.filter_overlong_prompts:
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

    def _build_messages(self, example: dict[str, Any], **_: Any) -> list[dict[str, Any]]:
        """verl's, with pictures where they lie, whether the row names them in a column or its messages show them as parts. verl
        takes the column out of `example`, here or later."""
        row_id = example["row_id"]
        root, where = Path(self.config.get("image_root") or Path(self._file(row_id)).parent), self.place(row_id)
        if example.get(self.image_key):
            example[self.image_key] = [placed_picture(picture, root, where) for picture in example[self.image_key]]
        example[self.prompt_key] = [
            message
            if isinstance(message["content"], str | None)
            else {**message, "content": placed_parts(message["content"], root, where)}
            for message in example[self.prompt_key]
        ]
        return super()._build_messages(example, **message_key(self.prompt_key))

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The prompt of a row, its pictures among the parts; the row stays as it is."""
        return self._build_messages({**row, self.prompt_key: [dict(message) for message in row[self.prompt_key]]})

    def _lengths(self, row: dict[str, Any]) -> dict[str, int]:
        """Tokens of the prompt as the agent loop renders it, images and videos included; pictures, and their tokens among these."""
        where = self.place(row["row_id"])
        options = dict(self.apply_chat_template_kwargs) | ({} if self.tool_schemas is None else {"tools": self.tool_schemas})
        if self.processor is None:
            tokens = len(ChatTemplate(self.tokenizer, options).ids(row[self.prompt_key], where))
            return {"tokens": tokens, "pictures": 0, "picture_tokens": 0}
        try:
            return self._processed(row, ChatTemplate(self.processor, options), where)
        except (TemplateRefusedError, PictureError):
            raise
        except Exception as error:  # a processor raises whatever its image library does
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(f"{where}: its images or videos cannot be processed ({said}); mend the row or leave it out") from error

    def _processed(self, row: dict[str, Any], template: ChatTemplate, where: str) -> dict[str, int]:
        from verl.utils.dataset.vision_utils import process_video

        if not row.get(self.video_key):
            tokens, shown = PictureReader(self.processor, template.options).lengths(self.messages(row), where)
            return {"tokens": tokens, "pictures": len(shown), "picture_tokens": sum(shown)}
        size = self.image_patch_size
        videos = [process_video(video, image_patch_size=size, return_video_metadata=True) for video in row[self.video_key]]
        messages = self.messages(row)
        pictures = open_pictures(picture_references(messages), size)
        more = {"video_metadata": [about for _, about in videos], "do_sample_frames": False}
        frames, text = [video for video, _ in videos], template.text(messages, where)
        encoded = self.processor(text=[text], images=pictures or None, videos=frames, videos_kwargs=more)
        return {"tokens": len(encoded["input_ids"][0]), "pictures": len(pictures), "picture_tokens": 0}


def _read_parquet(file: str) -> datasets.Dataset:
    try:
        # A name with brackets is a pattern to `datasets`, which would read another file.
        return datasets.load_dataset("parquet", data_files=escape(file))["train"]
    except Exception as error:  # datasets raises a dozen kinds of errors for a file that it cannot parse
        raise ValueError(f"data file {file} cannot be read as parquet: {error}") from error


def _read_json(file: str) -> datasets.Dataset:
    """As `prepare` reads it: `datasets` would take text for a date and a whole number for a float, and no mark of byte order."""
    rows = []
    for _, number, row in rows_of([Path(file)], ROWS_AT_ONCE, "data file"):
        if isinstance(row, RowFault):
            raise ValueError(f"data file {file}, row {number}: {row}; mend the row or leave it out")
        rows.append(row)
    columns: dict[str, pa.Array] = {}
    for name in rows[0] if rows else ():
        try:
            columns[name] = pa.array([row[name] for row in rows])
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise ValueError(
                f"data file {file}: column {name!r} holds values of several types, or numbers too large for one "
                f"({' '.join(str(error).split())[:200]}); write them alike, e.g. all as text"
            ) from error
    return datasets.Dataset(pa.table(columns))


def _undecoded(kind: Any) -> Any:
    """A column's type whose images stay bytes or paths: none is opened to count them."""
    if isinstance(kind, datasets.Image | datasets.Video):
        return type(kind)(decode=False)
    if isinstance(kind, datasets.List | datasets.LargeList):
        return type(kind)(_undecoded(kind.feature))
    return kind


def _shows(content: Any) -> bool:
    """Whether a message has parts beside text."""
    return isinstance(content, list) and any(part.get("type") not in (None, "text") for part in content)


def _number(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, list) else "one"
