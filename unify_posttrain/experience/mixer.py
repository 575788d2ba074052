"""The mixer carries out a batch plan: drops rollouts, joins demonstration rows, pads, deals, and attaches the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unify_posttrain.experience.plan import BatchPlan, weight_stream
from unify_posttrain.experience.ragged import token_counts, zeros
from unify_posttrain.experience.row_plan import deal, plan_rows
from unify_posttrain.experience.rows import DEMONSTRATION, PADDING, ROLLOUT, Rows, assemble, object_column

PREFIX_LENGTH = "response_prefix_length"  # column of rollouts that begin with tokens they did not sample: how many


@dataclass(frozen=True)
class Mixed:
    """A mixed batch. `kinds` (B,) int8 says what each row is; `padding` counts the zero-weight rows."""

    rows: Rows
    kinds: np.ndarray
    reordered: bool

    @property
    def padding(self) -> int:
        return int((self.kinds == PADDING).sum())


def mix(
    plan: BatchPlan,
    rollouts: Rows | None,
    demonstrations: Rows | None,
    ranks: int = 1,
    mini_batches: int = 1,
    filler: Rows | None = None,
    weighted: Sequence[str] = (),
) -> Mixed:
    """Apply a plan to a batch.

    Args:
        plan: one group per prompt.
        rollouts: generated rows with column `uid`; None if nothing was generated.
        demonstrations: one row per (uid, demonstration), column `uid`, with the tensors of `demonstration_tensors`; rows of
            groups that the plan gives no demonstration are ignored. None if there are none.
        ranks, mini_batches: R data-parallel ranks and S optimizer steps.
        filler: a row to copy for padding in a batch that has neither rollouts nor demonstrations.
        weighted: names of the terms whose coefficients are attached, one stream each.

    Returns:
        Rows with the added stream prefix_mask (B, T) bool (demonstration tokens, and the response prefix of a rollout: column
        `response_prefix_length`), and one stream NAME_weight (B,) float32 per weighted term (the group's coefficient; padding 0).
        If the plan keeps exactly the rollouts and no padding is needed, their order is untouched.

    Raises:
        ValueError: nothing to train on and nothing to pad with, or a demonstration that the plan asks for is absent.
    """
    rollout_picks = _picked_rollouts(plan, rollouts)
    demo_picks = _picked_demonstrations(plan, demonstrations)
    routed = len(rollout_picks) + len(demo_picks)
    row_plan = plan_rows(routed, ranks, mini_batches)
    if not plan.changes_rows and not row_plan.padding and rollouts is not None and len(rollouts) == routed:
        rows, kinds = rollouts, np.full(routed, ROLLOUT, dtype=np.int8)
        _attach_streams(rows, kinds, plan, weighted)
        return Mixed(rows, kinds, reordered=False)

    sources = [source for source in (rollouts, demonstrations) if source is not None and len(source)]
    if not sources:
        if filler is None:
            raise ValueError("a batch without rollouts and without demonstrations: nothing to train on")
        sources = [filler]
    shortest_source, shortest_row = min(
        ((source, int(np.argmin(source.lengths))) for source in sources), key=lambda pair: pair[0].lengths[pair[1]]
    )
    pad_picks = np.full(row_plan.padding, shortest_row)
    lengths = np.concatenate(
        [
            rollouts.lengths[rollout_picks] if rollouts is not None else np.zeros(0, int),
            demonstrations.lengths[demo_picks] if demonstrations is not None else np.zeros(0, int),
            shortest_source.lengths[pad_picks],
        ]
    )
    kinds = np.repeat(
        np.array([ROLLOUT, DEMONSTRATION, PADDING], dtype=np.int8), [len(rollout_picks), len(demo_picks), row_plan.padding]
    )
    order = deal(lengths, kinds, ranks, mini_batches)
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order))
    at = {kind: positions[kinds == kind] for kind in (ROLLOUT, DEMONSTRATION, PADDING)}
    # The first part is the template: rollouts know every column of the engine, demonstrations only their own.
    parts = []
    if rollouts is not None:
        parts.append((rollouts, rollout_picks, at[ROLLOUT]))
    if demonstrations is not None:
        parts.append((demonstrations, demo_picks, at[DEMONSTRATION]))
    parts.append((shortest_source, pad_picks, at[PADDING]))
    rows = assemble(parts, row_plan.rows)
    kinds = kinds[order]
    _silence_padding(rows, kinds)
    _attach_streams(rows, kinds, plan, weighted)
    return Mixed(rows, kinds, reordered=True)


def _picked_rollouts(plan: BatchPlan, rollouts: Rows | None) -> np.ndarray:
    if rollouts is None:
        return np.zeros(0, dtype=int)
    kept = {group.uid for group in plan if group.kept}
    return np.flatnonzero([uid in kept for uid in rollouts.columns["uid"]])


def _picked_demonstrations(plan: BatchPlan, demonstrations: Rows | None) -> np.ndarray:
    wanted = {group.uid: group.demonstrations for group in plan if group.demonstrations}
    uids: Sequence[str] = [] if demonstrations is None else list(demonstrations.columns["uid"])
    picked = []
    for row, uid in enumerate(uids):
        if wanted.get(uid, 0) > 0:
            wanted[uid] -= 1
            picked.append(row)
    absent = [uid for uid, count in wanted.items() if count]
    if absent:
        raise ValueError(f"the batch plan asks for demonstrations of groups {absent[:3]} that the batch does not hold")
    return np.asarray(picked, dtype=int)


def _silence_padding(rows: Rows, kinds: np.ndarray) -> None:
    """Padding rows: attended like the row they copy (the model needs tokens), but trained nowhere, scored 0, in no group."""
    padding = np.flatnonzero(kinds == PADDING)
    if not len(padding):
        return
    index = torch.from_numpy(padding)
    for name in ("response_mask", "prefix_mask", "rm_scores", "rollout_log_probs"):
        if name in rows.tensors:
            rows.tensors[name][index] = 0
    rows.columns["uid"][padding] = object_column([f"padding-{number}" for number in range(len(padding))])


def _attach_streams(rows: Rows, kinds: np.ndarray, plan: BatchPlan, weighted: Sequence[str]) -> None:
    mask = rows.tensors["response_mask"]
    prefix_mask = zeros(mask.shape, torch.bool)
    for row in np.flatnonzero(kinds == DEMONSTRATION):
        prefix_mask[row] = mask[row].bool()
    if PREFIX_LENGTH in rows.columns:
        given = np.where(kinds == ROLLOUT, rows.columns[PREFIX_LENGTH], 0).astype(np.int64)
        for row in np.flatnonzero(given):
            prefix_mask[row, : given[row]] = True
    rows.tensors["prefix_mask"] = prefix_mask
    groups = {group.uid: group for group in plan}  # padding rows have uids of their own
    for term in weighted:
        weights = [groups[uid].weight(term) if uid in groups else 0.0 for uid in rows.columns["uid"]]
        rows.tensors[weight_stream(term)] = torch.tensor(weights, dtype=torch.float32)


def plan_metrics(plan: BatchPlan, group_size: int) -> dict[str, float]:
    """`fusion/*` of the plan: prompts by zone (they sum to the number of prompts), histogram of successes, mean coefficients."""
    n = max(1, len(plan))
    tried = [group for group in plan if group.rollouts and group.graded]
    solved = sum(group.successes for group in tried)
    rollouts = sum(group.rollouts for group in tried)
    metrics = {f"fusion/prompts_{zone}": float(count) for zone, count in plan.zones().items()}
    metrics["fusion/gold_masked"] = float(sum(not group.graded for group in plan))
    for s in range(group_size + 1):
        metrics[f"fusion/gate_hist/{s}"] = float(sum(group.successes == s for group in tried))
    metrics["fusion/solve_rate"] = solved / rollouts if rollouts else 0.0
    metrics["fusion/solve_none"] = sum(group.successes == 0 for group in tried) / n
    metrics["fusion/solve_all"] = sum(group.successes == group.rollouts for group in tried) / n
    metrics["fusion/coef_on_mean"] = plan.mean_weight("rl")
    metrics["fusion/coef_off_mean"] = plan.mean_weight("off")
    metrics["fusion/coef_sft_mean"] = plan.mean_weight("sft")
    return metrics


def row_metrics(
    kinds: np.ndarray, response_mask: torch.Tensor, prefix_mask: torch.Tensor | None, scores: np.ndarray
) -> dict[str, float]:
    """`fusion/*` of the trained rows: how many and how long the demonstrations are, and what they score.

    Args:
        kinds: (B,) of ROLLOUT, DEMONSTRATION, PADDING.
        response_mask, prefix_mask: (B, T); the latter None where there are no target tokens.
        scores: (B,) row scores.
    """
    demo, on = kinds == DEMONSTRATION, kinds == ROLLOUT
    trained, prefix, both = (float(count) for count in _counts(response_mask, prefix_mask))
    tokens_on, tokens_demo = trained - both, both
    return {
        "fusion/demo_row_ratio": float(demo.sum() / max(1, demo.sum() + on.sum())),
        "fusion/demo_token_ratio": tokens_demo / max(1.0, tokens_demo + tokens_on),
        "fusion/tokens_on": tokens_on,
        "fusion/tokens_demo": tokens_demo,
        "fusion/tokens_hint": prefix - both,
        "fusion/rows_on": float(on.sum()),
        "fusion/rows_demo": float(demo.sum()),
        "fusion/rows_padding": float((kinds == PADDING).sum()),
        "fusion/demo_score": float(scores[demo].mean()) if demo.any() else 0.0,
        "fusion/on_score": float(scores[on].mean()) if on.any() else 0.0,
    }


def _counts(response_mask: torch.Tensor, prefix_mask: torch.Tensor | None) -> tuple[int, int, int]:
    """Tokens of either mask, and of both."""
    trained = int(token_counts(response_mask).sum())
    if prefix_mask is None:
        return trained, 0, 0
    given = token_counts(prefix_mask)
    both = sum(int((response_mask[row].bool() & prefix_mask[row]).sum()) for row in np.flatnonzero(given))
    return trained, int(given.sum()), both
