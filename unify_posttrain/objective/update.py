"""What an update does around a model's forward pass, backward pass and optimizer, without knowing any of them.

    ranks, record = Ranks(dist.all_reduce, dist.get_world_size()), UpdateRecord()
    for mini_batch in mini_batches:                                # streams of this rank's rows, as many on every rank
        update = MiniBatchUpdate(terms, mini_batch, ranks, old_is_current=len(mini_batches) == 1)
        if update.empty:
            record.empty += 1                                      # on every rank alike
            continue
        optimizer.zero_grad()
        for micro_batch in split(mini_batch):                      # of update.rows alone, if it skips the others
            update.loss({**micro_batch, **model(micro_batch)}).backward()
        norm = clip_gradient(model)
        stepped = may_step(norm, max_grad_norm)
        if stepped:
            optimizer.step()
        record.add(update, norm, stepped)
    metrics = record.reduced(ranks)                                # name -> global value of every optimizer step

Every rank makes the same calls in the same order, so that collectives meet. Nothing depends on how rows were dealt to ranks and
micro-batches. B rows, T response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unify_posttrain.objective.aggregation import Count
from unify_posttrain.objective.loss import compute_loss, count_members
from unify_posttrain.objective.terms import Term


def _alone(_tensor: Tensor) -> None:
    """A single process holds the sum already."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a mini-batch.

    Attributes:
        all_reduce: sums a tensor over them, in place; what it returns is ignored.
        world: how many take part in it.
        sequence_parallel: how many of them hold the same rows, and so count each of their tokens.
        device: where `all_reduce` wants its tensors.
        all_reduce_max: takes the maximum over them, in place.
    """

    all_reduce: Callable[[Tensor], object] = _alone
    world: int = 1
    sequence_parallel: int = 1
    device: torch.device | str | int = "cpu"
    all_reduce_max: Callable[[Tensor], object] = _alone

    @property
    def data_parallel(self) -> int:
        """Processes, or groups of them, that hold different rows."""
        return self.world // self.sequence_parallel

    def total(self, shares: Tensor) -> Tensor:
        """Global values, on CPU, of the additive `shares` of this rank; collective. May write into `shares`."""
        shares = shares.to(self.device)
        self.all_reduce(shares)
        return (shares / self.sequence_parallel).cpu()

    def largest(self, number: int) -> int:
        """The largest `number` of any rank; collective.

        Raises:
            ValueError: there are several, and no way to ask them.
        """
        if self.world > 1 and self.all_reduce_max is _alone:
            raise ValueError(f"{self.world} ranks skip rows together: give Ranks its all_reduce_max")
        found = torch.tensor(number, device=self.device)
        self.all_reduce_max(found)
        return int(found)


class MiniBatchUpdate:
    """One optimizer step: global counts when it is made, a loss per micro-batch, and the shares of its metrics.

    Attributes:
        rows: (B',) indices of the rows that have to be computed, as many on every rank and at least one; None: all of them.
        silent: (B',) bool, which of `rows` are there for their number alone; their masks have to be 0.
        counts: key of a member set -> its size over all ranks (see `count_members`).
        shares: metric of `compute_loss` -> this rank's share, added up over the micro-batches so far; with `skips` also
            `skipped_rows`, whose gradient is 0.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        streams: Mapping[str, Tensor],
        ranks: Ranks,
        *,
        scales: Mapping[str, float] | None = None,
        old_is_current: bool = False,
        skips: bool = False,
    ) -> None:
        """Counts the members; collective, one all-reduce of a vector whose length depends on the terms alone, with `skips` another.

        Args:
            terms: the objective.
            streams: masks and row weights of this rank's rows.
            ranks: who else holds rows of this mini-batch.
            scales: factors by term name (see `compute_loss`).
            old_is_current: no optimizer step has been taken yet on the batch that this mini-batch is cut from, and the policy is
                taken for the one that sampled it (see :func:`old_is_current`).
            skips: leave out rows that no term acts on (`Term.acts_on`), which get no gradient, such as GRPO's groups that are all
                right or all wrong. They stay in the counts, so that the gradient is that of all rows; `shares` of what the model
                gives (probabilities, entropies, ratios) are then means over the others.

        Raises:
            KeyError: a row weight is missing, or `prefix_mask` where a term acts on demonstrations or hints.
        """
        self.terms, self.ranks, self.scales, self.old_is_current = terms, ranks, scales, old_is_current
        learning = _learning(terms, streams) if skips else None
        self.rows: Tensor | None = None
        self.silent = torch.zeros(0, dtype=torch.bool)
        if learning is not None:
            self.rows, self.silent = _with_equally_many(learning, ranks)
        counted = [count_members(terms, streams, rows) for rows in (None, *(() if learning is None else (learning,)))]
        numbers = [number for counts in counted for count in counts.values() for number in count]
        self._keys, self._vector = tuple(counted[0]), ranks.total(torch.stack([torch.as_tensor(number) for number in numbers]))
        self.counts = _by_set(self._keys, self._vector)[0]
        self._skipped = 0 if learning is None else int((~learning & streams["response_mask"].bool().any(dim=-1)).sum())
        self.shares: dict[str, Tensor] = {}
        self._counts_beside: dict[tuple[torch.device, torch.dtype], list[dict[str, Count]]] = {}
        self._broken: list[tuple[Tensor, Sequence[object]]] = []

    @property
    def empty(self) -> bool:
        """Whether no term has a member on any rank: nothing to learn from, so no weight decay either, and no step."""
        return not any(float(self.counts[term.members.key].tokens) for term in self.terms)

    def loss(self, tensors: Mapping[str, Tensor], labels: Sequence[object] = ()) -> Tensor:
        """What to call `backward()` on for one micro-batch.

        Gradients are averaged over data-parallel ranks by FSDP and DDP, while shares add up to the global value only if summed;
        hence the factor in it.

        Args:
            tensors: streams of the micro-batch and the model's outputs.
            labels: (B,) names of the rows, for `suspects`.

        Raises:
            KeyError, ValueError: see `compute_loss`.
        """
        log_probs, mask = tensors["log_probs"], tensors["response_mask"].bool()
        self._broken.append(((~torch.isfinite(log_probs) & mask).any(dim=-1), labels))
        if self.old_is_current and "old_log_probs" in tensors:
            tensors = {**tensors, "old_log_probs": old_is_current(tensors)}
        counts, *measured = self._counts_for(log_probs)
        loss, metrics = compute_loss(self.terms, tensors, counts, self.scales, *measured)
        if self.rows is not None and not self.shares:  # beside the others, on their device
            self.shares["skipped_rows"] = log_probs.new_full((), self._skipped)
        for name, value in metrics.items():
            self.shares[name] = self.shares[name] + value if name in self.shares else value
        return loss * self.ranks.data_parallel

    def _counts_for(self, log_probs: Tensor) -> list[dict[str, Count]]:
        """`counts`, and where rows are skipped those of the others, in the dtype and on the device of `log_probs`. They are brought
        there once and all together: with every copy the host waits until the device has done all that it was given, and each
        micro-batch reads some twenty of them."""
        place = (log_probs.device, log_probs.dtype)
        if place not in self._counts_beside:
            self._counts_beside[place] = _by_set(self._keys, self._vector.to(device=place[0], dtype=place[1]))
        return self._counts_beside[place]

    def suspects(self) -> list[str]:
        """Labels of this rank's rows with a log-probability of a trained token that is not finite, each once."""
        named = [
            str(label)
            for rows, labels in self._broken
            for broken, label in zip(rows.tolist(), labels, strict=bool(labels))
            if broken
        ]
        return list(dict.fromkeys(named))


def _by_set(keys: Sequence[str], vector: Tensor) -> list[dict[str, Count]]:
    """Tokens and rows of every member set, which stand in pairs in `vector`: of all rows, then of those that are computed."""
    pairs = [Count(*pair) for pair in vector.unflatten(0, (-1, 2))]
    return [dict(zip(keys, pairs[start:], strict=False)) for start in range(0, len(pairs), len(keys))]


def _learning(terms: Sequence[Term], streams: Mapping[str, Tensor]) -> Tensor:
    """(B,) bool: the rows that some term acts on."""
    learning = torch.zeros(len(streams["response_mask"]), dtype=torch.bool, device=streams["response_mask"].device)
    for term in terms:
        learning |= term.acts_on(streams)
    return learning


def _with_equally_many(learning: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Indices, in order, of the rows that learn, and of so many others that each rank has as many as any, and one at least: a
    forward pass of a sharded model is a matter of all ranks, and an optimizer step without a gradient still decays. Beside them
    which are the others."""
    wanted = ranks.largest(max(1, int(learning.sum())))
    rows = torch.argsort(learning.to(torch.int8), descending=True, stable=True)[:wanted].sort().values
    return rows, ~learning[rows]


def old_is_current(tensors: Mapping[str, Tensor]) -> Tensor:
    """The on-policy rule: `old_log_probs` (B, T) of a policy that is still the one that sampled the batch.

    With a single optimizer step per batch, and in the first one of several, the policy at the start of the step is the one that is
    trained, so that r = 1 exactly whatever the precision of an earlier forward pass was; verl does the same with a single one.
    Target tokens (`prefix_mask`) keep what was computed for them.
    """
    current, old = tensors["log_probs"].detach(), tensors["old_log_probs"]
    return torch.where(tensors["prefix_mask"].bool(), old, current) if "prefix_mask" in tensors else current


def may_step(grad_norm: float, limit: float | None) -> bool:
    """The skip rule: whether an optimizer step may be taken with a gradient of this norm (before clipping).

    Args:
        grad_norm: over all ranks.
        limit: largest norm of a step; None: any that is finite.
    """
    return math.isfinite(grad_norm) and (limit is None or grad_norm <= limit)


@dataclass
class UpdateRecord:
    """What the optimizer steps of one update left behind.

    Attributes:
        steps: of every optimizer step, taken or skipped, this rank's shares of its metrics.
        grad_norms: of every one of them, before clipping.
        skipped: steps that were not taken for their norm.
        empty: mini-batches without members, which are no steps.
    """

    steps: list[dict[str, Tensor]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    skipped: int = 0
    empty: int = 0

    def add(self, update: MiniBatchUpdate, grad_norm: float, stepped: bool) -> None:
        self.steps.append(update.shares)
        self.grad_norms.append(grad_norm)
        self.skipped += not stepped

    @property
    def grad_norm(self) -> float:
        """Mean over steps; norms that are NaN are left out."""
        numbers = [norm for norm in self.grad_norms if not math.isnan(norm)]
        return sum(numbers) / len(numbers) if numbers else 0.0

    def reduced(self, ranks: Ranks) -> dict[str, list[float]]:
        """Metric -> its global value at every step; collective. Nothing, and no all-reduce, if there was no step."""
        if not self.steps:
            return {}
        names = list(self.steps[0])
        values = ranks.total(torch.stack([torch.stack([share[name].double() for name in names]) for share in self.steps]))
        return {name: values[:, column].tolist() for column, name in enumerate(names)}
