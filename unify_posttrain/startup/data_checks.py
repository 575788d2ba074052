"""Start-up checks of the data: both splits are loaded as the run will load them, before Ray starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import Algorithm, build_algorithm
from unify_posttrain.experience.demonstrations import PROBABILITY_COLUMN, TARGET_COLUMNS
from unify_posttrain.startup.inputs import Missing, downloads, missing_files, missing_model
from unify_posttrain.startup.reward_checks import check_sources
from unify_posttrain.startup.reward_trial import check_reward_function

logger = logging.getLogger(__name__)

HINT_COLUMN = "hint"


@dataclass(frozen=True)
class DataReport:
    """What the data check found: rows of each split, rows left out, rows without a usable target (None: not asked)."""

    train_rows: int
    train_dropped: int
    val_rows: int
    without_target: int | None


def check_data_if_there(config: DictConfig) -> tuple[DataReport | None, list[Missing]]:
    """For a dry run: the report of :func:`check_data`, or None and what is missing for it.

    Raises:
        ValueError: see :func:`check_data`.
    """
    missing = missing_files(config) + missing_model(config)
    if missing:
        check_reward_function(config)
        return None, missing + downloads(config)
    fetched = downloads(config)
    try:
        return check_data(config), fetched
    except OSError as error:
        if not fetched:
            raise
        logger.warning("the data was not read: no tokenizer (%s)", str(error).partition("\n")[0])
        return None, fetched


def check_data(config: DictConfig) -> DataReport:
    """Load both splits as the run will, and look at what only the rows can tell.

    Raises:
        ValueError: unreadable, empty or malformed files, prompts or (under demo.overlong=error) demonstrations over their limit,
            fewer prompts than a batch, more steps than the data has, a reward function that cannot score them.
    """
    from unify_posttrain.startup.dataset import FusionDataset
    from unify_posttrain.startup.tokenizers import load_tokenizer

    algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    tokenizer = load_tokenizer(config)

    def load(split: str) -> Any:
        limit = config.data.get(f"{split}_max_samples", -1)
        return FusionDataset(config.data[f"{split}_files"], tokenizer, config.data, max_samples=limit)

    train, val = load("train"), load("val")
    check_sources(config, {source for frame in (train, val) for source in frame.dataframe.unique("data_source")})
    check_reward_function(config, [frame.dataframe for frame in (train, val)])
    batch = config.data.train_batch_size
    if len(train) < batch:
        raise ValueError(f"data.train_files hold {len(train)} usable prompts, fewer than data.train_batch_size={batch}")
    steps, possible = config.trainer.total_training_steps, len(train) // batch * config.trainer.total_epochs
    if steps is not None and steps > possible:
        raise ValueError(
            f"trainer.total_training_steps={steps}, but {config.trainer.total_epochs} epochs have {possible} steps; "
            "raise trainer.total_epochs"
        )
    rules = [phase.algorithm.experience for phase in algorithm.phases]
    if any(rule.needs_hint for rule in rules) and HINT_COLUMN not in train.dataframe.column_names:
        raise ValueError(
            f"data.train_files have no column '{HINT_COLUMN}' (list of sentences), which algorithm={algorithm.name} reads hints "
            f"from; present: {', '.join(train.dataframe.column_names)}"
        )
    without_target = None
    if any(rule.needs_target for rule in rules):
        without_target = _check_targets(config, algorithm, train, tokenizer)
    return DataReport(len(train), train.dropped_prompts, len(val), without_target)


def _check_targets(config: DictConfig, algorithm: Algorithm, train: Any, tokenizer: Any) -> int:
    """Targets exist. They are tokenised here only if a policy makes one bad row an error. Returns the prompts without."""
    from unify_posttrain.startup.reader import make_reader

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
    demo = algorithm.fusion.demo
    if demo.overlong == "error" or demo.missing == "error":
        reader = make_reader(tokenizer, algorithm.fusion, config.data.get("apply_chat_template_kwargs", {}))
        readings = [reader.read(row["row_id"], row[config.data.prompt_key], row, step=0) for row in frame]
        without = [row for row, reading in enumerate(readings) if reading.demonstration is None]
        if without and demo.missing == "error":
            raise ValueError(
                f"training row {frame[without[0]]['row_id']} (and {len(without) - 1} more) has no usable target and "
                "fusion.demo.missing=error; fix the data, or set it to rl or skip"
            )
        return len(without)
    usable = sum(any(row[column] is not None and len(row[column]) for column in columns) for row in frame.select_columns(columns))
    if not usable:
        raise ValueError(f"every target in data.train_files is empty, algorithm={algorithm.name} has nothing to learn from")
    return len(frame) - usable
