"""Rows of VRAG: questions with the pages that matter, ours with worked answers of several turns, and the corpus beside them."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from unify_posttrain.preparation.store import sha256
from unify_posttrain.tasks import files
from unify_posttrain.tasks.episodes import EpisodeSettings, read_settings
from unify_posttrain.tasks.vrag.convert import Question, read_questions, read_trajectories
from unify_posttrain.tasks.vrag.corpus import Corpus, PageRecord, gold_ids
from unify_posttrain.tasks.vrag.judging import truth_text
from unify_posttrain.tasks.vrag.pages import Rendering, fill_corpus, write_corpus
from unify_posttrain.tasks.vrag.protocol import question_text
from unify_posttrain.tasks.vrag.sample import sample_pages, sample_questions
from unify_posttrain.tasks.vrag.settings import VragSettings

logger = logging.getLogger(__name__)

KEY, NAME = "prepare.task", "vrag"
MANIFEST_FORMAT = 1  # raise it when the rows for equal settings change: old folders are then rebuilt
SCHEMA = files.schema(
    uid=pa.string(),
    question=pa.string(),
    file_name=pa.string(),
    reference_page=pa.list_(pa.int64()),
    content_type=pa.string(),
    reason_type=pa.string(),
).append(pa.field("target_images", pa.list_(pa.string())))


@dataclass(frozen=True)
class Settings:
    """The node `prepare.task` of VRAG; conf/task/vrag.yaml has the meanings.

    Raises:
        ValueError: a value of a wrong type or outside its choices; names key, value and remedy.
    """

    seed: int
    documents: str | None
    questions: str | None
    trajectories: str | None
    trajectory_images: str | None
    test_share: float
    dpi: int
    largest_pages: int
    zoom: float
    environment: Mapping[str, Any]
    server: Mapping[str, Any]

    def __post_init__(self) -> None:
        for key, least in (("seed", None), ("dpi", 1), ("largest_pages", 1)):
            value = getattr(self, key)
            if type(value) is not int or (least is not None and value < least):
                raise ValueError(f"{KEY}.{key}={value!r}: give an integer{'' if least is None else f' of at least {least}'}")
        for key in ("test_share", "zoom"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{KEY}.{key}={value!r}: give a share from 0 to 1")
        if not 0 < self.test_share < 1:
            raise ValueError(
                f"{KEY}.test_share={self.test_share}: train.parquet and test.parquet need a part of the questions each"
            )

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> Settings:
        """From the configuration."""
        return cls(**files.row_settings(NAME, node, [item.name for item in fields(cls)]))

    @property
    def is_sample(self) -> bool:
        """Whether nothing of the user's is asked for."""
        return self.documents is None and self.questions is None and self.trajectories is None


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write the corpus, ``train.parquet``, ``test.parquet`` and ``manifest.json``; nothing to do if they match.

    Args:
        folder: made if missing; the corpus is the folder `corpus` in it, unless `documents` is null and questions are given.
        settings: the node `prepare.task`.

    Returns:
        {"train": path, "test": path} and the corpus's `pages.jsonl` under "corpus"; without questions the last alone.

    Raises:
        ValueError: settings that are refused, documents or questions that cannot be read.
    """
    read = Settings.from_node(settings)
    episode, node = read_settings(read.environment)
    own = VragSettings.read(node)
    paths: dict[str, Path] = {}
    if read.is_sample:
        paths["corpus"] = fill_corpus(folder / "corpus", _sample_identity(read), lambda draft: sample_pages(read.seed, draft))
    elif read.documents is not None:
        how = Rendering(read.dpi, read.largest_pages, own.largest_page_px)
        paths["corpus"] = write_corpus(folder / "corpus", Path(read.documents).expanduser(), how)
    if not read.is_sample and read.questions is None and read.trajectories is None:
        logger.info("%s.questions and %s.trajectories are null: no rows are written", KEY, KEY)
        return paths
    rows = files.write_files(folder, _identity(read, episode, own), SCHEMA, lambda: build_rows(read, episode, own))
    _check_gold(rows, Path(own.retriever.corpus) if "corpus" not in paths else paths["corpus"].parent, own)
    return {**rows, **paths}


def build_rows(read: Settings, episode: EpisodeSettings, own: VragSettings) -> list[files.Row]:
    """All rows, train rows first; equal settings give equal rows.

    Raises:
        ValueError: questions that cannot be read, or fewer than two.
    """
    questions = list(_questions(read, own))
    twice = [uid for uid, count in Counter(question.uid for question in questions).items() if count > 1]
    if twice:
        raise ValueError(f"{KEY}.questions={read.questions}: uid={twice[0]!r} stands there twice; give every question its own")
    random.Random(read.seed).shuffle(questions)
    held_out = min(max(round(read.test_share * len(questions)), 1), len(questions) - 1)
    if held_out < 1:
        raise ValueError(f"{KEY}.questions, {KEY}.trajectories: {len(questions)} questions; give at least two, one for each file")
    splits = {"train": questions[held_out:], "test": questions[:held_out]}
    return [_row(question, split, index, episode, own) for split, chosen in splits.items() for index, question in enumerate(chosen)]


def _questions(read: Settings, own: VragSettings) -> Iterator[Question]:
    if read.is_sample:
        yield from sample_questions(read.seed, own.showing, own.crop_tag, read.zoom)
    if read.questions is not None:
        yield from read_questions(Path(read.questions), f"{KEY}.questions")
    if read.trajectories is not None:
        images = None if read.trajectory_images is None else Path(read.trajectory_images).expanduser()
        yield from read_trajectories(Path(read.trajectories), images, own.crop_tag, f"{KEY}.trajectories")


def _row(question: Question, split: str, index: int, episode: EpisodeSettings, own: VragSettings) -> files.Row:
    opening = question.target[0]["content"].splitlines(keepends=True) if question.target else []
    return {
        "data_source": NAME,
        "prompt": [{"role": "user", "content": question_text(question.text, own.crop_tag, episode.max_turns)}],
        "target": list(question.target) or None,
        "hint": opening,
        "ability": NAME,
        "reward_model": {"style": "rule", "ground_truth": truth_text(question.answers)},
        "extra_info": {
            "index": index,
            "split": split,
            "uid": question.uid,
            "question": question.text,
            "file_name": question.file_name,
            "reference_page": list(question.pages),
            "content_type": question.content_type,
            "reason_type": question.reason_type,
        },
        "target_images": list(question.target_images),
    }


def _sample_identity(read: Settings) -> dict[str, Any]:
    return {"sample": MANIFEST_FORMAT, "seed": read.seed}


def _identity(read: Settings, episode: EpisodeSettings, own: VragSettings) -> dict[str, Any]:
    """What decides the rows: not where the corpus is, nor what is rewarded."""
    given = {name: getattr(read, name) for name in ("questions", "trajectories")}
    return {
        "format": MANIFEST_FORMAT,
        "settings": {"seed": read.seed, "test_share": read.test_share, "zoom": read.zoom, "images": read.trajectory_images},
        "protocol": {"max_turns": episode.max_turns, "crop_tag": own.crop_tag, "showing": own.showing.__dict__},
        "given": {name: None if path is None else _sum(Path(path), name) for name, path in given.items()},
    }


def _sum(path: Path, name: str) -> str:
    try:
        return sha256(path.expanduser())
    except OSError as error:
        raise ValueError(f"{KEY}.{name}={path} cannot be read ({error.strerror}); give a JSON file") from error


def _check_gold(rows: Mapping[str, Path], root: Path, own: VragSettings) -> None:
    """Say how many questions ask for pages that the corpus does not have: they earn nothing for their searches."""
    import pyarrow.parquet as pq

    try:
        known = Corpus.read(root, own.largest_page_px).by_id
    except ValueError as error:
        logger.warning("the pages that matter were not looked up: %s", error)
        return
    extras = [row["extra_info"] for path in rows.values() for row in pq.read_table(path, columns=["extra_info"]).to_pylist()]
    absent = [each for each in extras if each["reference_page"] and not _known(each, known)]
    if absent:
        first = gold_ids(absent[0]["file_name"], absent[0]["reference_page"])
        logger.warning(
            "%d of %d questions ask for pages that the corpus %s does not have (first: %s)", len(absent), len(extras), root, first
        )


def _known(extra: Mapping[str, Any], known: Mapping[str, PageRecord]) -> bool:
    wanted: Sequence[str] = gold_ids(extra["file_name"], extra["reference_page"])
    return all(page in known for page in wanted)
