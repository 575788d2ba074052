"""From rollouts and demonstrations to the batch that is trained: the driver's half of an experience rule.

Holds what one step has decided: the gate plan, what each row of the mixed batch is, and the scores of rollouts that were dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from verl import DataProto

from unify_posttrain.algorithms import Algorithm, FusionConfig, ScoredRows
from unify_posttrain.experience.advantages import override_advantages
from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.gate import BatchPlan
from unify_posttrain.experience.mixer import DEMONSTRATION, PADDING, PREFIX_LENGTH, ROLLOUT, mix, plan_metrics, row_metrics
from unify_posttrain.experience.rows import Rows
from unify_posttrain.experience.rules import Group
from unify_posttrain.objective import token_class
from unify_posttrain.trainer.demonstrator import Demonstrator

KIND_COLUMN = "fusion_kind"  # travels with the rows, so that every reordering keeps it right
GOLD_FIELD, FAULT_FIELD = "gold_ok", "grader_fault"  # what a reward function may say of a grading beside the score
KIND_NAMES = {ROLLOUT: "rollout", DEMONSTRATION: "demonstration", PADDING: "padding"}


class BatchMixer:
    """Plans and mixes the batches of a run.

    Args:
        fusion: the `fusion` node.
        demonstrator: None for algorithms without demonstrations; their batches are left as verl made them, unless rollouts begin
            with given tokens or groups are left out.
        mini_batches: S optimizer steps per training step.
        temperature: of the rollouts, which the workers read from the batch.
        log_probs: whether rollouts carry `rollout_log_probs`.
        normalise_by_std: `algorithm.norm_adv_by_std_in_grpo`.
    """

    def __init__(
        self,
        fusion: FusionConfig,
        demonstrator: Demonstrator | None,
        mini_batches: int,
        temperature: float,
        log_probs: bool,
        normalise_by_std: bool,
    ) -> None:
        self.fusion, self.demonstrator = fusion, demonstrator
        self.mini_batches, self.temperature = mini_batches, temperature
        self.log_probs, self.normalise_by_std = log_probs, normalise_by_std
        self.plan = BatchPlan(())
        self.dropped_scores: dict[str, np.ndarray] = {}

    def mix(
        self,
        algorithm: Algorithm,
        prompts: DataProto,
        rollouts: DataProto | None,
        demonstrations: Mapping[str, Demonstration],
        ranks: int,
        step: int,
        select: Callable[[BatchPlan], BatchPlan] | None = None,
    ) -> tuple[DataProto, bool, dict[str, float]]:
        """Decide the plan of a batch and carry it out.

        Args:
            algorithm: its experience rule decides.
            prompts: one row per prompt, column `uid`.
            rollouts: scored rollouts (`rm_scores`), or None if nothing was generated.
            demonstrations: usable demonstrations by uid.
            ranks: data-parallel ranks.
            step: training step, for seeded draws.
            select: leaves groups out of the plan (dynamic sampling).

        Returns:
            (batch, dealt, metrics): `dealt` is true if the rows have been dealt to ranks and mini-batches; otherwise they are
            the rollouts in their own order. Mixed batches carry `KIND_COLUMN`.
        """
        self.fusion = algorithm.fusion  # a phase of the run may have settings of its own
        self.plan = algorithm.experience.plan(self._groups(prompts, rollouts, demonstrations))
        if select is not None:
            self.plan = select(self.plan)
        ungraded = _ungraded(rollouts)
        if ungraded:
            self.plan = self.plan.masked(ungraded)
        metrics = {**plan_metrics(self.plan, self.fusion.group_size), **_generated(rollouts)}
        given = rollouts is not None and PREFIX_LENGTH in rollouts.non_tensor_batch
        if not algorithm.experience.needs_target and not given and select is None and not ungraded:
            # Nothing to mix: the batch ships no extra stream, and its loss is verl's to the last bit.
            return rollouts, False, {**metrics, **_rows(rollouts, np.full(len(rollouts), ROLLOUT))}
        picked = [(g.uid, demonstrations[g.uid]) for g in self.plan for _ in range(g.demonstrations)]
        packed = self.demonstrator.rows(prompts, picked, self.log_probs) if picked else None
        rows = None if rollouts is None else Rows(dict(rollouts.batch.items()), dict(rollouts.non_tensor_batch))
        if rows is not None and packed is not None and "target_probs" in packed.tensors:
            rows.tensors["target_probs"] = torch.ones_like(rows.tensors["responses"], dtype=torch.float32)  # nobody reads them
        nothing = rows is None and packed is None
        filler = self.demonstrator.filler(prompts, self.log_probs) if nothing else None
        mixed = mix(self.plan, rows, packed, ranks, self.mini_batches, filler)
        meta_info = {} if rollouts is None else dict(rollouts.meta_info)
        meta_info.setdefault("temperature", self.temperature)
        if self.demonstrator is not None:
            meta_info.setdefault("reward_extra_keys", self.demonstrator.reward_keys)
        columns = {**mixed.rows.columns, KIND_COLUMN: mixed.kinds}
        batch = DataProto.from_dict(tensors=mixed.rows.tensors, non_tensors=columns, meta_info=meta_info)
        self._attach_row_streams(algorithm, prompts, batch, step)
        return batch, mixed.reordered, {**metrics, **_rows(batch, mixed.kinds)}

    def _attach_row_streams(self, algorithm: Algorithm, prompts: DataProto, batch: DataProto, step: int) -> None:
        """Streams that only some terms read: uniform numbers, and which rows are solved."""
        read = {name for term in algorithm.terms for name in term.streams}
        if "uniforms" in read:
            batch.batch["uniforms"] = self._uniforms(prompts, batch, step)
        if "target_probs" in read and "target_probs" not in batch.batch:
            batch.batch["target_probs"] = torch.ones(batch.batch["responses"].shape, dtype=torch.float32)  # no demonstration
        if read & {"solved", "unsolved"}:
            scores = batch.batch["rm_scores"].sum(dim=-1).tolist()
            values = np.asarray(self._success_values(batch, scores), dtype=np.float64)
            solved = torch.from_numpy(values >= self.fusion.success_threshold)
            batch.batch["solved"], batch.batch["unsolved"] = solved.float(), (~solved).float()

    def _uniforms(self, prompts: DataProto, batch: DataProto, step: int) -> torch.Tensor:
        """(B, T) numbers in [0, 1) from (seed, step, prompt), for the `reject` shape: the same wherever a row is trained."""
        columns = prompts.non_tensor_batch
        row_ids = dict(zip(columns["uid"], columns["row_id"], strict=True))
        width = batch.batch["response_mask"].shape[-1]
        draws = [
            np.random.default_rng([self.fusion.seed, step, int(row_ids.get(uid, 0))]).random(width, dtype=np.float32)
            for uid in batch.non_tensor_batch["uid"]
        ]
        return torch.from_numpy(np.stack(draws))

    def replace_advantages(self, algorithm: Algorithm, batch: DataProto) -> dict[str, float]:
        """Put the advantages that verl's estimator cannot know into a batch, in place. Returns metrics of them."""
        scores = batch.batch["token_level_scores"].sum(dim=-1)
        metrics = {"fusion/kl_seq": 0.0}
        if {"old_log_probs", "ref_log_prob"} <= set(batch.batch.keys()):
            metrics.update(self._own_advantages(algorithm, batch, scores))
        if KIND_COLUMN not in batch.non_tensor_batch:
            return metrics
        prefixed = (token_class(batch.batch, "demo").any(dim=-1)).numpy()
        values = override_advantages(
            self.plan,
            batch.non_tensor_batch[KIND_COLUMN],
            batch.non_tensor_batch["uid"],
            scores.numpy(),
            self.dropped_scores,
            baseline=self.fusion.baseline,
            off_advantage=self.fusion.hpt.off_advantage,
            normalise_by_std=self.normalise_by_std,
            prefixed=prefixed,
        )
        _set_advantages(batch, values)
        return metrics

    def _own_advantages(self, algorithm: Algorithm, batch: DataProto, scores: torch.Tensor) -> Mapping[str, float]:
        """The algorithm's own advantages of the rows that were sampled; padding is not among them."""
        success = torch.tensor([float(value) for value in self._success_values(batch, scores.tolist())])
        mask = token_class(batch.batch, "on")
        sampled = mask.any(dim=-1).nonzero().squeeze(-1)
        streams = [tensor[sampled] for tensor in (scores, success, mask, batch.batch["old_log_probs"], batch.batch["ref_log_prob"])]
        uids = [str(batch.non_tensor_batch["uid"][row]) for row in sampled.tolist()]
        rows = ScoredRows(*streams[:2], uids, *streams[2:])
        own = algorithm.row_advantages(rows)
        if own is None:
            return {}
        _set_advantages(batch, torch.zeros_like(scores, dtype=torch.float64).index_copy(0, sampled, own[0].double()).numpy())
        rewards = algorithm.rewards(rows).to(scores.dtype)
        batch.batch["scores"] = torch.zeros_like(scores).index_copy(0, sampled, rewards)
        return own[1]

    def reward_field(self, rollouts: DataProto, name: str | None) -> np.ndarray:
        """(B,) a reward field by name, the reward itself for None.

        Raises:
            KeyError: the reward returns no such field.
        """
        if name is None:
            return rollouts.batch["rm_scores"].sum(dim=-1).numpy()
        return np.asarray(self._field(rollouts, name, "algorithm.filter_groups.metric"))

    def _groups(self, prompts: DataProto, rollouts: DataProto | None, demonstrations: Mapping[str, Demonstration]) -> list[Group]:
        """What the experience rule is told, one per prompt in the order of the batch."""
        scores: dict[str, list[float]] = defaultdict(list)
        solved: dict[str, int] = defaultdict(int)
        if rollouts is not None:
            rewards = rollouts.batch["rm_scores"].sum(dim=-1).tolist()
            for uid, reward, value in zip(
                rollouts.non_tensor_batch["uid"], rewards, self._success_values(rollouts, rewards), strict=True
            ):
                scores[uid].append(reward)
                solved[uid] += bool(value >= self.fusion.success_threshold)
        self.dropped_scores = {uid: np.array(values) for uid, values in scores.items()}
        groups = []
        for uid in prompts.non_tensor_batch["uid"]:
            demonstration = demonstrations.get(uid)
            verified = demonstration is not None and self.demonstrator.solved(demonstration)
            groups.append(Group(uid, solved[uid], len(scores[uid]), demonstration is not None, verified))
        return groups

    def _success_values(self, rollouts: DataProto, rewards: list[float]) -> list[float] | np.ndarray:
        key = self.fusion.success_key
        return rewards if key is None else self._field(rollouts, key, "fusion.success_key")

    def _field(self, rollouts: DataProto, name: str, setting: str) -> np.ndarray:
        if name not in rollouts.non_tensor_batch:
            known = list(rollouts.meta_info.get("reward_extra_keys", []))
            raise KeyError(f"{setting}={name!r}: the reward returns no such field; it returns {known}")
        return rollouts.non_tensor_batch[name]


def _set_advantages(batch: DataProto, values: np.ndarray) -> None:
    """Replace the advantages of rows whose value is not NaN, on trained tokens."""
    replaced = torch.from_numpy(~np.isnan(values)).unsqueeze(-1)
    new = torch.from_numpy(np.nan_to_num(values)).to(torch.float32).unsqueeze(-1) * batch.batch["response_mask"]
    for name in ("advantages", "returns"):
        batch.batch[name] = torch.where(replaced, new, batch.batch[name])


def kind_names(batch: DataProto) -> list[str] | None:
    """What each row of a mixed batch is, in words; None for an unmixed one."""
    kinds = batch.non_tensor_batch.get(KIND_COLUMN)
    return None if kinds is None else [KIND_NAMES[int(kind)] for kind in kinds]


def without_padding(batch: DataProto) -> DataProto:
    """The rows that count in statistics."""
    kinds = batch.non_tensor_batch.get(KIND_COLUMN)
    if kinds is None or not (kinds == PADDING).any() or (kinds == PADDING).all():
        return batch
    kept = np.flatnonzero(kinds != PADDING)
    lengths = batch.meta_info["global_token_num"]
    selected = batch.select_idxs(kept)
    selected.meta_info = {**batch.meta_info, "global_token_num": [lengths[row] for row in kept]}
    return selected


def _rows(batch: DataProto, kinds: np.ndarray) -> dict[str, float]:
    prefix_mask = batch.batch.get("prefix_mask", None)
    return row_metrics(kinds, batch.batch["response_mask"], prefix_mask, batch.batch["rm_scores"].sum(dim=-1).numpy())


def _ungraded(rollouts: DataProto | None) -> set[str]:
    """Prompts whose ground truth the reward function calls unusable (field `gold_ok`, see `unify_posttrain.rewards.grading`)."""
    if rollouts is None or GOLD_FIELD not in rollouts.non_tensor_batch:
        return set()
    columns = rollouts.non_tensor_batch
    return {uid for uid, usable in zip(columns["uid"], columns[GOLD_FIELD], strict=True) if not usable}


def _generated(rollouts: DataProto | None) -> dict[str, float]:
    """What was generated, before the gate dropped anything."""
    if rollouts is None:
        return {"fusion/rollout_score": 0.0, "fusion/tokens_generated": 0.0, "fusion/grader_faults": 0.0}
    faults = rollouts.non_tensor_batch.get(FAULT_FIELD, ())
    return {
        "fusion/grader_faults": float(sum(faults)),
        "fusion/rollout_score": float(rollouts.batch["rm_scores"].sum(dim=-1).mean()),
        "fusion/tokens_generated": float(rollouts.batch["response_mask"].sum()),
    }
