"""From rollouts and demonstrations to the batch that is trained: the driver's half of an experience rule."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from verl import DataProto
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from unify_posttrain.algorithms import Algorithm, FusionConfig
from unify_posttrain.experience.mixer import PREFIX_LENGTH, ROLLOUT, mix, plan_metrics, row_metrics
from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.experience.ragged import token_counts
from unify_posttrain.experience.rows import Rows
from unify_posttrain.experience.rules import Group
from unify_posttrain.rewards.contract import FAULT, GOLD, UNSCORED
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.mixed_batch import KIND_COLUMN, MixedBatch, success_values
from unify_posttrain.trainer.prompts import Generated, Prompts
from unify_posttrain.trainer.rewards import unscored_rows
from unify_posttrain.trainer.turns import Turns
from unify_posttrain.workers.transport import Travelling


class BatchMixer:
    """Plans and mixes the batches of a run.

    Args:
        demonstrator: None for algorithms without demonstrations; their batches are left as verl made them, unless rollouts begin
            with given tokens or groups are left out.
        temperature: of the rollouts, which the workers read from the batch.
        log_probs: whether rollouts carry `rollout_log_probs`.
        turns: of rollouts that are episodes; None: they are single answers.
    """

    def __init__(self, demonstrator: Demonstrator | None, temperature: float, log_probs: bool, turns: Turns | None = None) -> None:
        self.demonstrator, self.turns = demonstrator, turns
        self.temperature, self.log_probs = temperature, log_probs

    @classmethod
    def from_config(cls, config: Any, demonstrator: Demonstrator | None) -> BatchMixer:
        rollout = config.actor_rollout_ref.rollout
        return cls(demonstrator, rollout.temperature, bool(rollout.calculate_log_probs), Turns.from_config(config))

    def mix(self, algorithm: Algorithm, generated: Generated, ranks: int, mini_batches: int, step: int) -> MixedBatch:
        """Decide the plan of a batch and carry it out.

        Args:
            algorithm: its experience rule decides.
            generated: what was drawn, and the scored rollouts.
            ranks, mini_batches: data-parallel ranks, and optimizer steps per training step.
            step: training step, for seeded draws.
        """
        prompts, rollouts = generated.prompts, generated.rollouts
        counted = {**_generated(rollouts), **({} if self.turns is None else self.turns.read(rollouts))}
        scores, groups = self._groups(algorithm.fusion, prompts, rollouts)
        plan = algorithm.experience.plan(groups)
        if generated.select is not None:
            plan = generated.select(plan)
        ungraded, unscored = _ungraded(rollouts), _unscored(rollouts)
        if unscored:
            rollouts = _scored_alone(rollouts, scores)
            generated = replace(generated, rollouts=rollouts)
            plan = plan.without_rollouts(unscored)
            ungraded |= {uid for uid in unscored if not len(scores.get(uid, ()))}
        if ungraded:
            plan = plan.masked(ungraded)
        metrics = {**plan_metrics(plan, algorithm.fusion.group_size), **counted}
        given = rollouts is not None and PREFIX_LENGTH in rollouts.non_tensor_batch
        as_generated = generated.select is None and not ungraded and not unscored
        if not algorithm.experience.needs_target and not given and as_generated:
            # Nothing to mix: the batch ships no extra stream, and its loss is verl's to the last bit.
            metrics.update(_rows(rollouts, np.full(len(rollouts), ROLLOUT)))
            return MixedBatch(rollouts, plan, scores, False, metrics)
        batch, kinds, dealt = self._carry_out(plan, generated, ranks, mini_batches, algorithm.weighted_terms)
        self._attach_row_streams(algorithm, prompts, batch, step)
        metrics.update(_rows(batch, kinds))
        if dealt:
            metrics.update(_balance(batch, ranks))
        return MixedBatch(batch, plan, scores, dealt, metrics)

    def _groups(
        self, fusion: FusionConfig, prompts: Prompts, rollouts: DataProto | None
    ) -> tuple[dict[str, np.ndarray], list[Group]]:
        """Scores by uid, and what the experience rule is told: one group per prompt in the order of the batch. A rollout without a
        score is one of its group, as the rule asked for it, and has not solved anything."""
        scores: dict[str, list[float]] = defaultdict(list)
        solved: dict[str, int] = defaultdict(int)
        number: dict[str, int] = defaultdict(int)
        if rollouts is not None:
            rewards = rollouts.batch["rm_scores"].sum(dim=-1).tolist()
            values = success_values(fusion, rollouts, rewards)
            lacking = unscored_rows(rollouts)
            for uid, reward, value, lacks in zip(rollouts.non_tensor_batch["uid"], rewards, values, lacking, strict=True):
                number[uid] += 1
                if not lacks:
                    scores[uid].append(reward)
                    solved[uid] += bool(value >= fusion.success_threshold)
        groups = []
        for uid in prompts.rows.non_tensor_batch["uid"]:
            demonstration = prompts.demonstrations.get(uid)
            verified = demonstration is not None and self.demonstrator.solved(fusion, demonstration)
            groups.append(Group(uid, solved[uid], number[uid], demonstration is not None, verified))
        return {uid: np.array(values) for uid, values in scores.items()}, groups

    def _carry_out(
        self, plan: BatchPlan, generated: Generated, ranks: int, mini_batches: int, weighted: Sequence[str]
    ) -> tuple[DataProto, np.ndarray, bool]:
        """(batch, kind of each row, whether the rows were dealt)."""
        prompts, rollouts = generated.prompts, generated.rollouts
        picked = [(group.uid, prompts.demonstrations[group.uid]) for group in plan for _ in range(group.demonstrations)]
        packed = self.demonstrator.rows(prompts.rows, picked, self.log_probs) if picked else None
        rows = None if rollouts is None else Rows(dict(rollouts.batch.items()), dict(rollouts.non_tensor_batch))
        if rows is not None and packed is not None and "target_probs" in packed.tensors:
            rows.tensors["target_probs"] = torch.ones_like(rows.tensors["responses"], dtype=torch.float32)  # nobody reads them
        nothing = rows is None and packed is None
        filler = self.demonstrator.filler(prompts.rows, self.log_probs) if nothing else None
        mixed = mix(plan, rows, packed, ranks, mini_batches, filler, weighted)
        meta_info = {} if rollouts is None else dict(rollouts.meta_info)
        meta_info.setdefault("temperature", self.temperature)
        if self.demonstrator is not None:
            meta_info.setdefault("reward_extra_keys", self.demonstrator.reward_keys)
        columns = {**mixed.rows.columns, KIND_COLUMN: mixed.kinds}
        batch = Travelling.from_dict(tensors=mixed.rows.tensors, non_tensors=columns, meta_info=meta_info)
        return batch, mixed.kinds, mixed.reordered

    def _attach_row_streams(self, algorithm: Algorithm, prompts: Prompts, batch: DataProto, step: int) -> None:
        """Streams that only some terms read: uniform numbers, and which rows are solved."""
        read = {name for term in algorithm.terms for name in term.streams}
        fusion = algorithm.fusion
        if "uniforms" in read:
            batch.batch["uniforms"] = _uniforms(fusion.seed, prompts, batch, step)
        if "target_probs" in read and "target_probs" not in batch.batch:
            batch.batch["target_probs"] = torch.ones(batch.batch["responses"].shape, dtype=torch.float32)  # no demonstration
        if read & {"solved", "unsolved"}:
            scores = batch.batch["rm_scores"].sum(dim=-1).tolist()
            values = np.asarray(success_values(fusion, batch, scores), dtype=np.float64)
            solved = torch.from_numpy(values >= fusion.success_threshold)
            batch.batch["solved"], batch.batch["unsolved"] = solved.float(), (~solved).float()


def _uniforms(seed: int, prompts: Prompts, batch: DataProto, step: int) -> torch.Tensor:
    """(B, T) numbers in [0, 1) from (seed, step, prompt), for the `reject` shape: the same wherever a row is trained."""
    row_ids, width = prompts.row_ids, batch.batch["response_mask"].shape[-1]
    draws = [
        np.random.default_rng([seed, step, row_ids.get(str(uid), 0)]).random(width, dtype=np.float32)
        for uid in batch.non_tensor_batch["uid"]
    ]
    return torch.from_numpy(np.stack(draws))


def _balance(batch: DataProto, ranks: int) -> dict[str, float]:
    """How evenly tokens are spread over ranks, under verl's names."""
    lengths = token_counts(batch.batch["attention_mask"]).tolist()
    blocks = np.arange(len(lengths)).reshape(ranks, -1).tolist()
    return log_seqlen_unbalance(seqlen_list=lengths, partitions=blocks, prefix="global_seqlen")


def _rows(batch: DataProto, kinds: np.ndarray) -> dict[str, float]:
    prefix_mask = batch.batch.get("prefix_mask", None)
    return row_metrics(kinds, batch.batch["response_mask"], prefix_mask, batch.batch["rm_scores"].sum(dim=-1).numpy())


def _ungraded(rollouts: DataProto | None) -> set[str]:
    """Prompts whose ground truth the reward function calls unusable (field `gold_ok`, see `unify_posttrain.rewards.grading`)."""
    if rollouts is None or GOLD not in rollouts.non_tensor_batch:
        return set()
    columns = rollouts.non_tensor_batch
    return {uid for uid, usable in zip(columns["uid"], columns[GOLD], strict=True) if not usable}


def _unscored(rollouts: DataProto | None) -> Counter[str]:
    """Rollouts to which the reward function gave no score, by uid."""
    lacking = unscored_rows(rollouts)
    return Counter(rollouts.non_tensor_batch["uid"][lacking].tolist()) if rollouts is not None and lacking.any() else Counter()


def _scored_alone(rollouts: DataProto, scores: dict[str, np.ndarray]) -> DataProto:
    """The rollouts that have a score; of groups in which none has one all of them, for the plan to leave out. `unscored` is
    dropped, which nobody reads any more."""
    uids, lacking = rollouts.non_tensor_batch["uid"], unscored_rows(rollouts)
    kept = [row for row, uid in enumerate(uids) if not lacking[row] or not len(scores.get(uid, ()))]
    selected = rollouts.select_idxs(np.array(kept))
    selected.non_tensor_batch.pop(UNSCORED)
    return selected


def _generated(rollouts: DataProto | None) -> dict[str, float]:
    """What was generated, before the gate dropped anything."""
    if rollouts is None:
        names = ("rollout_score", "tokens_generated", "grader_faults", "reward_unscored")
        return {f"fusion/{name}": 0.0 for name in names}
    faults, lacking = rollouts.non_tensor_batch.get(FAULT, ()), unscored_rows(rollouts)
    scores = rollouts.batch["rm_scores"].sum(dim=-1).numpy()[~lacking]
    return {
        "fusion/grader_faults": float(sum(faults)),
        "fusion/reward_unscored": float(lacking.sum()),
        "fusion/rollout_score": float(scores.mean()) if len(scores) else 0.0,
        "fusion/tokens_generated": float(token_counts(rollouts.batch["response_mask"]).sum()),
    }
