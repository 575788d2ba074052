"""Start-up checks of the data: both splits are loaded as the run will load them, before Ray starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.chat import ChatTemplate
from unify_posttrain.rewards.truths import check_truths
from unify_posttrain.startup.episode_checks import EpisodePlan, check_ready, check_turns
from unify_posttrain.startup.inputs import Missing, downloads, missing_files, missing_model
from unify_posttrain.startup.memory_checks import check_memory
from unify_posttrain.startup.reward_checks import check_sources
from unify_posttrain.startup.reward_trial import check_reward_function
from unify_posttrain.startup.round_trip import check_round_trip
from unify_posttrain.startup.target_checks import check_hints, check_targets
from unify_posttrain.tasks.truths import check_own_truths
from unify_posttrain.tasks.turns import ImageLimits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataReport:
    """What the data check found.

    Attributes:
        train_rows, val_rows: of each split; `train_dropped` were left out.
        without_target: rows without a usable target; None: not asked.
        masked_truths: rows of both splits whose ground truth cannot be graded against.
        episode: of environments, what an episode may take.
        datasets: what was read, training and validation: a run need not read it again.
        pictures, picture_tokens: the most that a prompt shows, and the most tokens of them; an episode shows more (`episode`).
    """

    train_rows: int
    train_dropped: int
    val_rows: int
    without_target: int | None
    masked_truths: int = 0
    episode: EpisodePlan | None = None
    datasets: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)
    pictures: int = 0
    picture_tokens: int = 0

    @property
    def seen_tokens(self) -> int:
        """The most tokens of pictures in a row: those of its prompt, and those that an episode shows."""
        limits = ImageLimits() if self.episode is None else self.episode.limits
        return self.picture_tokens + limits.images * limits.tokens


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
        ValueError: unreadable, empty or malformed files, prompts that the chat template does not take, prompts or (under
            demo.overlong=error) demonstrations over their limit, targets of a wrong type, fewer prompts than a batch, more steps
            than the data has, a reward function that cannot score them, ground truths that no reward can use, a tokenizer that
            loses characters, a template that makes no turns or no room for one.
    """
    from verl.utils.fs import copy_to_local

    from unify_posttrain.startup.dataset import FusionDataset
    from unify_posttrain.startup.tokenizers import load_processor, load_tokenizer

    algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    tokenizer = load_tokenizer(config)

    processor = load_processor(config, copy_to_local(config.actor_rollout_ref.model.path))

    def load(split: str) -> Any:
        limit = config.data.get(f"{split}_max_samples", -1)
        return FusionDataset(config.data[f"{split}_files"], tokenizer, config.data, processor, max_samples=limit)

    train, val = load("train"), load("val")
    template = ChatTemplate(tokenizer, config.data.get("apply_chat_template_kwargs", {}))
    for warning in template.warnings(train.dataframe[0][train.prompt_key]):
        logger.warning("%s", warning)
    check_sources(config, {source for frame in (train, val) for source in frame.dataframe.unique("data_source")})
    masked = _check_truths(config, (train, val))
    check_reward_function(config, [frame.dataframe for frame in (train, val)])
    episode = check_turns(config, template, train.dataframe[0])
    check_ready(config)
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
    if any(rule.needs_hint for rule in rules):
        check_hints(algorithm, train, template)
    without_target = None
    if any(rule.needs_target for rule in rules):
        without_target = check_targets(config, algorithm, train, template)
    for split in (train, val):
        check_round_trip(split, tokenizer)
    shown = [split.pictures for split in (train, val)]
    pictures, tokens = max(each.most for each in shown), max(each.tokens for each in shown)
    _check_picture_limit(config, pictures, 0 if episode is None else episode.limits.images)
    report = DataReport(
        len(train), train.dropped_prompts, len(val), without_target, masked, episode, (train, val), pictures, tokens
    )
    check_memory(config, algorithm, report.seen_tokens)  # once more: how much a row shows, only the data tells
    return report


def _check_picture_limit(config: DictConfig, pictures: int, shown: int) -> None:
    """vLLM refuses a prompt of more pictures than it keeps memory for, in the middle of the first batch."""
    limit = config.actor_rollout_ref.rollout.get("limit_images")
    if limit is not None and pictures + shown > limit:
        more = f", and its episode up to {shown} more" if shown else ""
        raise ValueError(
            f"actor_rollout_ref.rollout.limit_images={limit}: a prompt of the data shows {pictures} pictures{more}; raise it"
        )


def _check_truths(config: DictConfig, splits: Sequence[Any]) -> int:
    """Ground truths that the reward cannot use are refused, those that it cannot read are counted and said. Returns the number."""
    node = OmegaConf.to_container(config.reward.custom_reward_function, resolve=True)
    masked = 0
    for split in splits:
        rows = split.dataframe.select_columns(["row_id", "reward_model"])
        truths = [(split.place(row["row_id"]), row["reward_model"]["ground_truth"]) for row in rows]
        check_own_truths(node, truths)
        found = check_truths(node, truths)
        if found is not None:
            logger.warning("%s", found.sentence(truths[found.rows[0]][0], "their prompts are masked"))
            masked += len(found.rows)
    return masked
