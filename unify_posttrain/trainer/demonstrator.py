"""Demonstrations of a training batch: read from target columns, scored once by the task's own reward, packed as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from verl import DataProto
from verl.protocol import pad_dataproto_to_divisor

from unify_posttrain.algorithms import FusionConfig
from unify_posttrain.experience.demonstrations import (
    PROBABILITY_COLUMN,
    TARGET_IMAGES,
    Demonstration,
    DemonstrationReader,
)
from unify_posttrain.experience.pictures import picture_references
from unify_posttrain.experience.rows import Rows, object_column
from unify_posttrain.experience.targets import TARGET_COLUMNS
from unify_posttrain.rewards.contract import SCORE, UNSCORED
from unify_posttrain.rollout.pictures import PictureReader
from unify_posttrain.startup.reader import make_reader
from unify_posttrain.tasks.environment import had_outage, played
from unify_posttrain.tasks.episodes import episode_node
from unify_posttrain.trainer.packing import INPUTS_COLUMN, Packing, picture_reader
from unify_posttrain.trainer.rewards import column, unscored_rows

Score = dict[str, Any]  # the reward and its fields; `unscored` of one that has none


class Demonstrator:
    """Keeps the scores of demonstrations over steps (and, through `state`, over resumes).

    Args:
        reader: see `make_reader`.
        score_rows: rows with `rm_scores`-free tensors -> DataProto with `rm_scores` and reward columns (verl's reward loop).
        workers: reward workers, which verl wants to share the rows evenly.
        prompt_length, response_length, pad_id, pictures: see `Packing`.
        environment: node of the configuration; it scores demonstrations of several turns, turn by turn. None: their last answer
            is scored like any other.
        decode: token ids -> text, for the environment.
    """

    def __init__(
        self,
        reader: DemonstrationReader,
        score_rows: Callable[[DataProto], DataProto],
        workers: int,
        prompt_length: int,
        response_length: int,
        pad_id: int,
        environment: Mapping[str, Any] | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        pictures: PictureReader | None = None,
    ) -> None:
        self.environment, self.decode = environment, decode
        self.reader, self.score_rows, self.workers = reader, score_rows, workers
        self.packing = Packing(prompt_length, response_length, pad_id, pictures)
        self.scores: dict[tuple[int, int], Score] = {}
        self.reward_keys: list[str] = []

    @classmethod
    def from_config(
        cls,
        config: Any,
        fusion: FusionConfig,
        tokenizer: Any,
        score_rows: Callable[[DataProto], DataProto],
        processor: Any = None,
    ) -> Demonstrator:
        data, pictures = config.data, picture_reader(config, processor)
        environment = episode_node(config)
        return cls(
            make_reader(tokenizer, fusion, data.get("apply_chat_template_kwargs", {}), pictures, environment),
            score_rows,
            workers=config.reward.num_workers,
            prompt_length=data.max_prompt_length,
            response_length=data.max_response_length,
            pad_id=tokenizer.pad_token_id,
            environment=environment,
            decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            pictures=pictures,
        )

    @property
    def state(self) -> dict[str, Any]:
        """JSON form of what must survive a resume."""
        return {"scores": [[*key, score] for key, score in self.scores.items()], "reward_keys": self.reward_keys}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self.scores = {(row_id, target): score for row_id, target, score in state["scores"]}
        self.reward_keys = list(state["reward_keys"])

    def read(self, fusion: FusionConfig, batch: DataProto, step: int) -> tuple[dict[str, Demonstration], dict[str, float]]:
        """Usable demonstrations of a prompt batch by uid, and how many were missing or overlong.

        Target columns are removed from the batch: they have no business in the agent loops or reward workers.

        Args:
            fusion: of the step's algorithm, which says what becomes of rows without a target and of wrong ones.
            batch: prompts with target columns.
            step: training step, for seeded draws.

        Raises:
            ValueError: a missing target under fusion.demo.missing=error; names the row.
        """
        columns = batch.non_tensor_batch
        targets = {name: columns.pop(name) for name in (*TARGET_COLUMNS, PROBABILITY_COLUMN, TARGET_IMAGES) if name in columns}
        found: dict[str, Demonstration] = {}
        missing = overlong = 0
        for index, uid in enumerate(columns["uid"]):
            row = {name: column[index] for name, column in targets.items()}
            row_id = int(columns["row_id"][index])
            reading = self.reader.read(row_id, columns["raw_prompt"][index], row, step)
            missing, overlong = missing + reading.missing, overlong + reading.overlong
            if reading.demonstration is not None:
                found[uid] = reading.demonstration
            elif fusion.demo.missing == "error":
                raise ValueError(f"training row {row_id} has no usable target; fix the data, or set fusion.demo.missing=rl or skip")
        again = self._score(batch, found)
        unscored = [uid for uid, demonstration in found.items() if self.scores[demonstration.key].get(UNSCORED)]
        for uid in unscored:  # its reward would stand in the group of its rollouts
            del found[uid]
        for key in again:
            del self.scores[key]
        missing += len(unscored)
        if fusion.demo.require_verified:
            found = {uid: demonstration for uid, demonstration in found.items() if self.solved(fusion, demonstration)}
        return found, {"fusion/demo_missing": float(missing), "fusion/demo_overlong": float(overlong)}

    def solved(self, fusion: FusionConfig, demonstration: Demonstration) -> bool:
        """Whether the task's check counts the demonstration as a success, by `fusion.success_key` of the step's algorithm.

        Raises:
            KeyError: the reward returns no such field.
        """
        score = self.scores[demonstration.key]
        key = fusion.success_key or "reward"
        if key not in score and key not in self.reward_keys:
            raise KeyError(f"fusion.success_key={key!r}: the reward returns no such field; it returns {self.reward_keys}")
        value = score.get(key)  # None: not of this demonstration
        return value is not None and value >= fusion.success_threshold

    def rows(self, batch: DataProto, picked: Sequence[tuple[str, Demonstration]], log_probs: bool) -> Rows:
        """Demonstration rows with every tensor and column that a rollout has.

        Args:
            batch: prompt batch (for data_source, reward_model, …), column `uid`.
            picked: (uid, demonstration) per row.
            log_probs: whether rollouts carry `rollout_log_probs`; a demonstration's are 0 and never read.
        """
        tensors, inputs = self.packing.rows([demonstration for _, demonstration in picked])
        columns = {INPUTS_COLUMN: inputs, **self._columns(batch, [uid for uid, _ in picked])}
        columns["__num_turns__"] = np.array([2 * len(demonstration.answers) for _, demonstration in picked], dtype=np.int32)
        scored = [self.scores.get(demonstration.key) for _, demonstration in picked]
        if all(score is not None for score in scored):
            last = tensors["attention_mask"][:, self.packing.prompt_length :].sum(dim=-1) - 1
            tensors["rm_scores"] = torch.zeros(tensors["response_mask"].shape, dtype=torch.float32)
            tensors["rm_scores"][torch.arange(len(picked)), last] = torch.tensor([score["reward"] for score in scored])
            columns.update({key: column(key, [score.get(key) for score in scored]) for key in self.reward_keys})
        if log_probs:
            tensors["rollout_log_probs"] = torch.zeros(tensors["response_mask"].shape, dtype=torch.float32)
        return Rows(tensors, columns)

    def filler(self, batch: DataProto, log_probs: bool) -> Rows:
        """One row with the first prompt and an EOS, for padding a batch in which no prompt has anything to train on."""
        prompt = batch.non_tensor_batch["raw_prompt"][0]
        _, prompt_ids = self.reader.render(prompt)
        empty = Demonstration(-1, 0, tuple(prompt_ids), (self.reader.eos_id,), pictures=picture_references(prompt))
        rows = self.rows(batch, [(batch.non_tensor_batch["uid"][0], empty)], log_probs)
        rows.tensors["rm_scores"] = torch.zeros(rows.tensors["response_mask"].shape, dtype=torch.float32)
        rows.columns.update({key: column(key, [None]) for key in self.reward_keys})
        return rows

    def _columns(self, batch: DataProto, uids: Sequence[str]) -> dict[str, np.ndarray]:
        position = {uid: index for index, uid in enumerate(batch.non_tensor_batch["uid"])}
        index = [position[uid] for uid in uids]
        names = ("data_source", "reward_model", "extra_info", "raw_prompt")
        columns = {
            name: object_column([batch.non_tensor_batch[name][i] for i in index])
            for name in names
            if name in batch.non_tensor_batch
        }
        return {
            "uid": object_column(list(uids)),
            **columns,
        }

    def _score(self, batch: DataProto, found: Mapping[str, Demonstration]) -> list[tuple[int, int]]:
        """Score what has not been scored yet: answers through the same reward loop as rollouts, several turns as an episode.

        Returns:
            keys of those that must be asked about another time: a service failed that their episode asked.
        """
        again: list[tuple[int, int]] = []
        fresh = [(uid, demonstration) for uid, demonstration in found.items() if demonstration.key not in self.scores]
        if self.environment is not None:
            for uid, demonstration in [each for each in fresh if each[1].mask]:
                score = self.scores[demonstration.key] = self._played(batch, uid, demonstration)
                again += [demonstration.key] if score.get(UNSCORED) else []
            fresh = [each for each in fresh if not each[1].mask]
        if not fresh:
            return again
        fresh = [(uid, replace(each, response_ids=each.answers[-1], mask=())) for uid, each in fresh]
        rows = self.rows(batch, fresh, log_probs=False)
        data = DataProto.from_dict(tensors=rows.tensors, non_tensors=rows.columns)
        padded, _ = pad_dataproto_to_divisor(data, self.workers)
        scored = self.score_rows(padded)
        self.reward_keys = list(dict.fromkeys([*self.reward_keys, *scored.meta_info["reward_extra_keys"]]))
        rewards = scored.batch["rm_scores"].sum(dim=-1).tolist()
        lacking = unscored_rows(scored)
        for index, (_, demonstration) in enumerate(fresh):
            extra = {key: _plain(scored.non_tensor_batch[key][index]) for key in scored.meta_info["reward_extra_keys"]}
            lacks = {UNSCORED: 1.0} if lacking[index] else {}
            self.scores[demonstration.key] = {**extra, **lacks, "reward": rewards[index]}
        return again

    def _played(self, batch: DataProto, uid: str, demonstration: Demonstration) -> Score:
        """The fields of the episode in which a demonstration's answers are given."""
        row = {name: column[0] for name, column in self._columns(batch, [uid]).items()}
        episode = played(self.environment, row, [self.decode(ids) for ids in demonstration.answers])
        fields = episode.fields()
        self.reward_keys = list(dict.fromkeys([*self.reward_keys, *fields]))
        lacks = {UNSCORED: 1.0} if had_outage(episode) else {}
        return {**fields, **lacks, "reward": fields[SCORE]}


def _plain(value: Any) -> Any:
    """A numpy scalar as a JSON value; NaN is a missing one."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and value != value else value
