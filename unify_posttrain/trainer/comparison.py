"""verl's comparison of the engine's log-probabilities with the actor's, without tensors as large as the whole padded batch.

verl compares in two stages, by a dozen tensors of all rows and columns. What it makes of them are statistics, which do not need
the padding. The first stage gets the compared tokens alone, and says the same to the last bit. The second one has means per row:
where the batch is large it gets blocks of rows of similar lengths, each as wide as its longest, and sums are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.rollout_corr_helper import compute_offpolicy_metrics
from verl.utils.debug.metrics import calculate_debug_metrics

from unify_posttrain.experience.ragged import token_counts

ENGINE, ACTOR, MASK = "rollout_log_probs", "old_log_probs", "response_mask"
CORRECTION = "rollout_corr/"  # verl's prefix of the second stage
OF_TOKENS = frozenset(("kl", "k3_kl", "chi2_token"))  # means over tokens; the others are over rows, or extremes
EXTREMES = {"log_ppl_diff_max": max, "log_ppl_diff_min": min}
CELLS = 2**22  # rows times columns of a block; a batch that is no larger is compared at once


@contextmanager
def engine_hidden(batch: DataProto) -> Iterator[None]:
    """Keeps verl's stages from comparing."""
    hidden = batch.batch.pop(ENGINE) if ENGINE in batch.batch else None
    try:
        yield
    finally:
        if hidden is not None:
            batch.batch[ENGINE] = hidden


def probability_metrics(batch: DataProto) -> dict[str, float]:
    """verl's `training/rollout_*`; none without the engine's log-probabilities."""
    if ENGINE not in batch.batch:
        return {}
    mask = batch.batch[MASK].bool()
    tokens = {name: batch.batch[name][mask].unsqueeze(0) for name in (ENGINE, ACTOR)}
    tokens |= {name: mask.new_ones(1, 1).expand(tokens[ENGINE].shape) for name in (MASK, "responses")}
    return calculate_debug_metrics(DataProto(TensorDict(tokens, batch_size=[1])))


def correction_metrics(batch: DataProto, cells: int = CELLS) -> dict[str, float]:
    """verl's `rollout_corr/*`; none without the engine's log-probabilities or without a trained token.

    Args:
        batch: with `old_log_probs`.
        cells: of a block; more rows than these hold are compared in several.
    """
    if ENGINE not in batch.batch or not bool(batch.batch[MASK].any()):
        return {}
    mask = batch.batch[MASK]
    blocks = _blocks(batch, cells) if mask.numel() > cells else [(np.arange(len(mask)), mask.shape[-1])]
    found, rows, tokens = [], [], []
    for some, width in blocks:
        actor, engine, trained = (batch.batch[name][:, :width][some] for name in (ACTOR, ENGINE, MASK))
        found.append(compute_offpolicy_metrics(actor, engine, trained))
        rows.append(len(some))
        tokens.append(int(trained.sum()))
    joined = found[0] if len(found) == 1 else _joined(found, rows, tokens)
    return {f"{CORRECTION}{name}": value for name, value in joined.items()}


def _blocks(batch: DataProto, cells: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows and columns of every block: similar lengths together, each with a trained token, which verl insists on."""
    ends = token_counts(batch.batch["attention_mask"][:, -batch.batch[MASK].shape[-1] :])
    trained = token_counts(batch.batch[MASK]) > 0
    order = np.lexsort((-ends, ~trained))  # rows without a trained token come last
    start, last = 0, int(trained.sum())
    while start < last:
        width = max(1, int(ends[order[start]]))
        end = start + max(1, cells // width)
        if end >= last:
            end, width = len(order), max(1, int(ends[order[start:]].max()))
        yield order[start:end], width
        start = end


def _joined(found: list[dict[str, float]], rows: list[int], tokens: list[int]) -> dict[str, float]:
    joined = {}
    for name in found[0]:
        values = [each[name] for each in found]
        if name in EXTREMES:
            joined[name] = EXTREMES[name](values)
        else:
            joined[name] = float(np.average(values, weights=tokens if name in OF_TOKENS else rows))
    return joined
