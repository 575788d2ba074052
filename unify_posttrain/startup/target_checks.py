"""Start-up checks of what is trained beside prompts: targets and hints of every row, and where they meet the chat template."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.chat import THINKING_FAULTS, ChatTemplate, joined, thinking_fault
from unify_posttrain.experience.demonstrations import PROBABILITY_COLUMN, TARGET_IMAGES
from unify_posttrain.experience.targets import TARGET_COLUMNS, Target, targets_of
from unify_posttrain.rollout.pictures import PictureReader
from unify_posttrain.startup.reader import make_reader, turn_frame
from unify_posttrain.tasks.environment import check_images
from unify_posttrain.tasks.episodes import episode_node

logger = logging.getLogger(__name__)

HINT_COLUMN = "hint"


def check_targets(config: DictConfig, algorithm: Algorithm, train: Any, template: ChatTemplate) -> int:
    """Targets exist, can be trained, fit the template, and show images that are there. Returns the number of rows without.

    They are tokenised here only if a policy makes one bad row an error.

    Args:
        config: of the run.
        algorithm: that trains them.
        train: the training split, a FusionDataset.
        template: of the run.

    Raises:
        ValueError: no column, no usable target, one of a wrong type, several turns of which the template makes none, an image
            that cannot be shown, or one that `fusion.demo` refuses.
    """
    frame = train.dataframe
    columns = [column for column in TARGET_COLUMNS if column in frame.column_names]
    if not columns:
        raise ValueError(
            f"data.train_files have no column 'target' (or 'target_lst'), algorithm={algorithm.name} trains demonstrations; "
            f"present: {', '.join(frame.column_names)}. Add one, or use algorithm=grpo"
        )
    if algorithm.fusion.shaping.name == "target_prob" and PROBABILITY_COLUMN not in frame.column_names:
        raise ValueError(
            f"data.train_files have no column '{PROBABILITY_COLUMN}' (teacher probabilities per target token), which "
            "fusion.shaping.name=target_prob reads; use p_div_p"
        )
    usable, several, faults = 0, False, {}
    images = _ImageCheck(episode_node(config), train)
    read = [train.prompt_key, *columns, *({TARGET_IMAGES} & set(frame.column_names)), "row_id"]
    for row in frame.select_columns(read):
        targets = _named(train, row, targets_of)
        _named(train, row, lambda each, row_id, targets=targets: images.check(targets, each.get(TARGET_IMAGES), row_id))
        usable += bool(targets)
        several |= any(len(target.texts) > 1 for target in targets)
        if targets:
            prompt = template.text(row[train.prompt_key], train.place(row["row_id"]))  # marks of pictures do not open thinking
            begun = [thinking_fault(prompt, target.texts[0]) for target in targets]
            for fault in dict.fromkeys(fault for fault in begun if fault is not None):
                faults.setdefault(fault, []).append(row["row_id"])
    if several:
        turn_frame(template)  # an error that names the template
    for fault, rows in faults.items():
        what, remedy = THINKING_FAULTS[fault]
        logger.warning("the targets of %d of %d rows (first: %s) %s; %s", len(rows), len(frame), train.place(rows[0]), what, remedy)
    demo = algorithm.fusion.demo
    if demo.overlong == "error" or demo.missing == "error":
        pictures = None if train.processor is None else PictureReader(train.processor, template.options)
        reader = make_reader(train.tokenizer, algorithm.fusion, template.options, pictures, episode_node(config))
        readings = [reader.read(row["row_id"], train.messages(row), row, step=0) for row in frame]
        without = [row for row, reading in enumerate(readings) if reading.demonstration is None]
        if without and demo.missing == "error":
            raise ValueError(
                f"training row {frame[without[0]]['row_id']} (and {len(without) - 1} more) has no usable target and "
                "fusion.demo.missing=error; fix the data, or set it to rl or skip"
            )
        return len(without)
    if not usable:
        raise ValueError(f"every target in data.train_files is empty, algorithm={algorithm.name} has nothing to learn from")
    return len(frame) - usable


class _ImageCheck:
    """Looks at what the targets of rows show between two answers: a fault would otherwise end the run when the row is trained.

    Args:
        node: `environment` of the configuration; None: nothing shows images.
        train: the training split.
    """

    def __init__(self, node: Mapping[str, Any] | None, train: Any) -> None:
        self.images = None if node is None else check_images(node)
        self.sees = train.processor is not None

    def check(self, targets: Sequence[Target], named: Any, row_id: int) -> None:
        entries = [] if named is None else [str(entry) for entry in named]
        several = [target for target in targets if len(target.texts) > 1] if self.images is not None else []
        try:
            for target in several:
                self.images(target.messages, entries)
        except ValueError as error:
            raise ValueError(f"training row {row_id}: {error}") from error
        if several and entries and not self.sees:
            raise ValueError(
                f"training row {row_id}: the target shows {len(entries)} images, and the model has no processor for them; take a "
                "multimodal model, e.g. model=qwen2_5_vl_7b"
            )


def check_hints(algorithm: Algorithm, train: Any, template: ChatTemplate) -> None:
    """Every hint is a list of sentences, and none opens the thinking that the template has opened.

    Raises:
        ValueError: no column, or such a hint; names file and row.
    """
    frame = train.dataframe
    if HINT_COLUMN not in frame.column_names:
        raise ValueError(
            f"data.train_files have no column '{HINT_COLUMN}' (list of sentences), which algorithm={algorithm.name} reads hints "
            f"from; present: {', '.join(frame.column_names)}"
        )
    for row in frame.select_columns([train.prompt_key, HINT_COLUMN, "row_id"]):
        hint = "".join(_named(train, row, lambda each, row_id: hint_sentences(each[HINT_COLUMN], row_id)))
        if hint and joined(template.text(row[train.prompt_key], train.place(row["row_id"])), hint) != hint:
            raise ValueError(
                f"{train.place(row['row_id'])}: column {HINT_COLUMN!r} begins with <think>, which {template.name} has opened "
                "already; take it out of the hints, or give another template: actor_rollout_ref.model.custom_chat_template=…"
            )


def hint_sentences(value: Any, row_id: int) -> tuple[str, ...]:
    """A `hint` cell as sentences; null is none.

    Raises:
        ValueError: not a list of text.
    """
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or any(not isinstance(part, str) for part in value):
        raise ValueError(f"training row {row_id}: column 'hint' must be a list of sentences, not {str(value)[:80]!r}")
    return tuple(value)


def _named(train: Any, row: Mapping[str, Any], read: Any) -> Any:
    """What `read` makes of a row, or its error with the row's file."""
    try:
        return read(row, row["row_id"])
    except ValueError as error:
        said = str(error).removeprefix(f"training row {row['row_id']}: ")
        raise ValueError(f"{train.place(row['row_id'])} (training row {row['row_id']}): {said}") from error
