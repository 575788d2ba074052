"""From rollouts and demonstrations to the batch that is trained: the driver's half of an experience rule.

Holds what one step has decided: the gate plan, what each row of the mixed batch is, and the scores of rollouts that were dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from verl import DataProto

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience.advantages import override_advantages
from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.gate import GatePlan
from unify_posttrain.experience.mixer import DEMONSTRATION, PADDING, ROLLOUT, mix, plan_metrics, row_metrics
from unify_posttrain.experience.rows import Rows
from unify_posttrain.experience.rules import Group
from unify_posttrain.trainer.demonstrator import Demonstrator

KIND_COLUMN = "fusion_kind"  # travels with the rows, so that every reordering keeps it right
KIND_NAMES = {ROLLOUT: "rollout", DEMONSTRATION: "demonstration", PADDING: "padding"}


class BatchMixer:
    """Plans and mixes the batches of a run.

    Args:
        algorithm: its experience rule decides.
        demonstrator: None for algorithms without demonstrations; their batches are left as verl made them.
        mini_batches: S optimizer steps per training step.
        temperature: of the rollouts, which the workers read from the batch.
        log_probs: whether rollouts carry `rollout_log_probs`.
        normalise_by_std: `algorithm.norm_adv_by_std_in_grpo`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        demonstrator: Demonstrator | None,
        mini_batches: int,
        temperature: float,
        log_probs: bool,
        normalise_by_std: bool,
    ) -> None:
        self.algorithm, self.fusion = algorithm, algorithm.fusion
        self.demonstrator = demonstrator
        self.mini_batches, self.temperature = mini_batches, temperature
        self.log_probs, self.normalise_by_std = log_probs, normalise_by_std
        self.plan = GatePlan(())
        self.dropped_scores: dict[str, np.ndarray] = {}

    def mix(
        self,
        prompts: DataProto,
        rollouts: DataProto | None,
        demonstrations: Mapping[str, Demonstration],
        ranks: int,
        step: int,
    ) -> tuple[DataProto, bool, dict[str, float]]:
        """Decide the plan of a batch and carry it out.

        Args:
            prompts: one row per prompt, column `uid`.
            rollouts: scored rollouts (`rm_scores`), or None if nothing was generated.
            demonstrations: usable demonstrations by uid.
            ranks: data-parallel ranks.
            step: training step, for seeded draws.

        Returns:
            (batch, dealt, metrics): `dealt` is true if the rows have been dealt to ranks and mini-batches; otherwise they are
            the rollouts in their own order. Mixed batches carry `KIND_COLUMN`.
        """
        self.plan = self.algorithm.experience.plan(self._groups(prompts, rollouts, demonstrations))
        metrics = {**plan_metrics(self.plan, self.fusion.group_size), **_generated(rollouts)}
        if self.demonstrator is None:
            # Nothing to mix: the batch ships no extra stream, and its loss is verl's to the last bit.
            return rollouts, False, {**metrics, **_rows(rollouts, np.full(len(rollouts), ROLLOUT))}
        picked = [(g.uid, demonstrations[g.uid]) for g in self.plan for _ in range(g.demonstrations)]
        packed = self.demonstrator.rows(prompts, picked, self.log_probs) if picked else None
        rows = None if rollouts is None else Rows(dict(rollouts.batch.items()), dict(rollouts.non_tensor_batch))
        nothing = rows is None and packed is None
        filler = self.demonstrator.filler(prompts, self.log_probs) if nothing else None
        mixed = mix(self.plan, rows, packed, ranks, self.mini_batches, filler)
        meta_info = {} if rollouts is None else dict(rollouts.meta_info)
        meta_info.setdefault("temperature", self.temperature)
        meta_info.setdefault("reward_extra_keys", self.demonstrator.reward_keys)
        if any("uniforms" in term.streams for term in self.algorithm.terms):
            mixed.rows.tensors["uniforms"] = self._uniforms(prompts, mixed.rows, step)
        columns = {**mixed.rows.columns, KIND_COLUMN: mixed.kinds}
        batch = DataProto.from_dict(tensors=mixed.rows.tensors, non_tensors=columns, meta_info=meta_info)
        return batch, mixed.reordered, {**metrics, **_rows(batch, mixed.kinds)}

    def _uniforms(self, prompts: DataProto, rows: Rows, step: int) -> torch.Tensor:
        """(B, T) numbers in [0, 1) from (seed, step, prompt), for the `reject` shape: the same wherever a row is trained."""
        columns = prompts.non_tensor_batch
        row_ids = dict(zip(columns["uid"], columns["row_id"], strict=True))
        width = rows.tensors["response_mask"].shape[-1]
        draws = [
            np.random.default_rng([self.fusion.seed, step, int(row_ids.get(uid, 0))]).random(width, dtype=np.float32)
            for uid in rows.columns["uid"]
        ]
        return torch.from_numpy(np.stack(draws))

    def replace_advantages(self, batch: DataProto) -> None:
        """Put the advantages that verl's estimator cannot know into a mixed batch, in place."""
        if KIND_COLUMN not in batch.non_tensor_batch:
            return
        values = override_advantages(
            self.plan,
            batch.non_tensor_batch[KIND_COLUMN],
            batch.non_tensor_batch["uid"],
            batch.batch["token_level_scores"].sum(dim=-1).numpy(),
            self.dropped_scores,
            baseline=self.fusion.baseline,
            off_advantage=self.fusion.hpt.off_advantage,
            normalise_by_std=self.normalise_by_std,
        )
        replaced = torch.from_numpy(~np.isnan(values)).unsqueeze(-1)
        new = torch.from_numpy(np.nan_to_num(values)).to(torch.float32).unsqueeze(-1) * batch.batch["response_mask"]
        for name in ("advantages", "returns"):
            batch.batch[name] = torch.where(replaced, new, batch.batch[name])

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
        if key is None:
            return rewards
        if key not in rollouts.non_tensor_batch:
            known = list(rollouts.meta_info.get("reward_extra_keys", []))
            raise KeyError(f"fusion.success_key={key!r}: the reward returns no such field; it returns {known}")
        return rollouts.non_tensor_batch[key]


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
    tokens = batch.batch["response_mask"].sum(dim=-1).numpy()
    return row_metrics(kinds, tokens, batch.batch["rm_scores"].sum(dim=-1).numpy())


def _generated(rollouts: DataProto | None) -> dict[str, float]:
    """What was generated, before the gate dropped anything."""
    if rollouts is None:
        return {"fusion/rollout_score": 0.0, "fusion/tokens_generated": 0.0}
    return {
        "fusion/rollout_score": float(rollouts.batch["rm_scores"].sum(dim=-1).mean()),
        "fusion/tokens_generated": float(rollouts.batch["response_mask"].sum()),
    }
