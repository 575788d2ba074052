"""The public entry of the estimator: count members globally, then sum the terms.

    counts = count_members(terms, whole_mini_batch)            # on many ranks: all-reduce the numbers
    for micro_batch in micro_batches:
        loss, metrics = compute_loss(terms, {**micro_batch, **model_outputs}, counts)
        loss.backward()                                        # FSDP averages gradients: multiply by the number of ranks

Because every contribution is divided by its global count, the sum over micro-batches and ranks does not depend on how the
mini-batch was split, ordered, padded or sharded. With `counts=None` the tensors given are the whole mini-batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from unify_posttrain.objective.aggregation import Count, at_least_one
from unify_posttrain.objective.references import LOG_RATIO_BOUND
from unify_posttrain.objective.streams import stream, token_class
from unify_posttrain.objective.terms import Members, PolicyGradient, Term

Counts = Mapping[str, Count]

# Counted for every objective, so that statistics per token class exist even where no term acts on it.
_STATISTICS = (Members("on"), Members("demo", may_be_absent=True))
_MASKS = ("response_mask", "prefix_mask")
_ALWAYS_READ = ("log_probs", "entropys", "old_log_probs")  # the model's outputs, and what statistics compare them with


def member_sets(terms: Sequence[Term]) -> list[Members]:
    """The distinct member sets of an objective, in a fixed order: what has to be counted."""
    sets: dict[str, Members] = {}
    for members in (*_STATISTICS, *(term.members for term in terms), *(term.normaliser for term in terms)):
        known = sets.get(members.key)
        if known is None or known.may_be_absent:  # of two that differ in this alone, the one that insists on its mask
            sets[members.key] = members
    return list(sets.values())


def count_members(terms: Sequence[Term], tensors: Mapping[str, Tensor], rows: Tensor | None = None) -> dict[str, Count]:
    """Tokens and rows of every member set.

    Args:
        terms: the objective.
        tensors: at least `response_mask` (B, T), `prefix_mask` (B, T) if there is one, and the row-weight streams named.
        rows: (B,) bool, those that are counted; None: all.

    Returns:
        key of a member set -> Count of 0-dim float64 tensors (exact for any number of tokens, and additive over ranks).

    Raises:
        KeyError: a row weight is missing, or `prefix_mask` where a term acts on demonstrations or hints.
    """
    counts = {}
    for members in member_sets(terms):
        mask = members.mask(tensors) if rows is None else members.mask(tensors)[rows]
        counts[members.key] = Count(mask.sum(dtype=torch.float64), mask.any(dim=-1).sum(dtype=torch.float64))
    return counts


def compute_loss(
    terms: Sequence[Term],
    tensors: Mapping[str, Tensor],
    counts: Counts | None = None,
    scales: Mapping[str, float] | None = None,
    measured: Counts | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ_k scale_k · coefficient_k · L_k for the rows given, each L_k normalised by its global count.

    Args:
        terms: the objective; names must be distinct.
        tensors: streams by name (see `objective.streams`); `log_probs` (B, T) carries the gradient.
        counts: global counts from `count_members`; None counts the tensors given. On a device they cost no copy if they are on it
            already, in the dtype of `log_probs` (as `MiniBatchUpdate` has them).
        scales: factors by term name, for coefficients that are only known with the batch (HPT's share of prompts); 1 if absent.
        measured: where rows without a gradient are left out, the counts of the others. Means of what the model gives are then over
            those; losses, ρ and clipped shares, to which a row without a gradient adds 0, stay means over all.

    Returns:
        (loss, metrics): a 0-dim tensor to call `backward()` on, and detached 0-dim tensors by name. Both are *additive
        shares*: summed over the micro-batches and ranks that `counts` covers they are the global values. Per term
        `NAME_loss` (before coefficient and scale); for policy-gradient terms `NAME_ratio` (mean π_θ/π_ref), `NAME_kept` (share
        of tokens that the stabiliser keeps), `NAME_weight` (mean token weight) and, under PPO clip, `NAME_clipfrac` and
        `NAME_clipfrac_lower`; plus `total_loss` and per token class the mean probability (`on_p`, `demo_p`, with hint terms
        `hint_p`), the mean effective ρ of all terms (`on_rho`, `demo_rho`), `demo_nll`, the mean `entropy` of trained tokens if
        the model computed it, and `ppo_kl` = mean of log π_old - log π_θ over sampled tokens.

    Raises:
        KeyError: a stream that a term reads is missing, or `prefix_mask` where a term acts on demonstrations or hints.
        ValueError: shapes disagree, or two terms bear one name.
    """
    read = {*_ALWAYS_READ, *(name for term in terms for name in term.streams)}
    _check(terms, tensors, read)
    tensors = _silenced(tensors, read)
    counts = count_members(terms, tensors) if counts is None else counts
    measured = counts if measured is None else measured
    log_probs = tensors["log_probs"]
    # Connected to the graph even when every term is empty: each rank must run the same number of backward passes.
    total = 0.0 * torch.where(token_class(tensors, "trained"), log_probs, 0.0).sum()
    metrics: dict[str, Tensor] = {}
    effective_rho = torch.zeros_like(log_probs, requires_grad=False)
    for term in terms:
        members, row_weight = term.members.mask(tensors), term.members.weight(tensors)
        count = _to_dtype(counts[term.normaliser.key], log_probs)
        counted = None if term.counted is None else term.counted.mask(tensors)
        value = term.aggregation(term.loss.token_loss(tensors), members, row_weight, count, counted)
        scale = 1.0 if scales is None else scales.get(term.name, 1.0)
        total = total + value * (term.coefficient * scale)
        metrics[f"{term.name}_loss"] = value.detach()
        if isinstance(term.loss, PolicyGradient):
            own, seen = (at_least_one(_to_dtype(each[term.members.key], log_probs).tokens) for each in (counts, measured))
            for name, quantity in term.loss.statistics(tensors).items():
                among = own if name.startswith("clipfrac") else seen
                metrics[f"{term.name}_{name}"] = torch.where(members, quantity, 0.0).sum() / among
            rho = torch.where(members, term.loss.rho(tensors), 0.0) * (term.coefficient * scale)
            effective_rho += rho if row_weight is None else rho * row_weight.unsqueeze(-1)
    metrics["total_loss"] = total.detach()
    metrics.update(_statistics(tensors, counts, measured, effective_rho))
    return total, metrics


def _statistics(tensors: Mapping[str, Tensor], counts: Counts, measured: Counts, rho: Tensor) -> dict[str, Tensor]:
    """Means over on-policy and over demonstration tokens: of ρ over those of `counts`, of all else over those of `measured`."""
    log_probs = tensors["log_probs"].detach()
    on, demo = (token_class(tensors, which) for which in ("on", "demo"))
    all_on, all_demo, n_on, n_demo = (
        at_least_one(_to_dtype(among[which], log_probs).tokens) for among in (counts, measured) for which in ("on", "demo")
    )
    p = log_probs.exp()
    statistics = {
        "on_p": torch.where(on, p, 0.0).sum() / n_on,
        "on_rho": torch.where(on, rho, 0.0).sum() / all_on,
        "demo_p": torch.where(demo, p, 0.0).sum() / n_demo,
        "demo_rho": torch.where(demo, rho, 0.0).sum() / all_demo,
        "demo_nll": torch.where(demo, -log_probs, 0.0).sum() / n_demo,
    }
    if "hint" in counts:
        hint = token_class(tensors, "hint")
        statistics["hint_p"] = torch.where(hint, p, 0.0).sum() / at_least_one(_to_dtype(measured["hint"], log_probs).tokens)
    if "entropys" in tensors:
        trained = at_least_one(sum(_to_dtype(measured[which], log_probs).tokens for which in ("on", "demo")))
        statistics["entropy"] = torch.where(on | demo, tensors["entropys"].detach(), 0.0).sum() / trained
    if "old_log_probs" in tensors:
        difference = torch.clamp(tensors["old_log_probs"] - log_probs, min=-LOG_RATIO_BOUND, max=LOG_RATIO_BOUND)
        statistics["ppo_kl"] = torch.where(on, difference, 0.0).sum() / n_on
    return statistics


def _to_dtype(count: Count, like: Tensor) -> Count:
    """Counts as scalars of the loss's dtype and device: float64 would promote the whole backward pass."""
    tokens, rows = (
        value.to(device=like.device, dtype=like.dtype) if isinstance(value, Tensor) else like.new_tensor(value) for value in count
    )
    return Count(tokens, rows)


def _silenced(tensors: Mapping[str, Tensor], read: Collection[str]) -> dict[str, Tensor]:
    """The tensors; token streams that are read have zeros outside every token class, in their own dtype. A NaN there would reach
    the gradient as 0·NaN, masked or not, and the rest of its row through whatever looks at whole rows."""
    used = token_class(tensors, "trained") | token_class(tensors, "hint")
    return {
        name: torch.where(used, value, value.new_zeros(())) if name in read and value.ndim == 2 else value
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }


def _check(terms: Sequence[Term], tensors: Mapping[str, Tensor], read: Collection[str]) -> None:
    shape = stream(tensors, "log_probs", "the objective").shape
    if len(shape) != 2:
        raise ValueError(f"log_probs must be (B, T), got {tuple(shape)}")
    for name, value in tensors.items():
        if (name in read and value.shape not in (shape, shape[:1])) or (name in _MASKS and value.shape != shape):
            raise ValueError(f"stream {name!r} has shape {tuple(value.shape)}, log_probs has {tuple(shape)}")
    names = [term.name for term in terms]
    if len(set(names)) != len(names):
        raise ValueError(f"two terms bear one name: {names}")
