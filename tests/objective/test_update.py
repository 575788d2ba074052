"""The pure piece of an update, ranks simulated by threads: nothing depends on how rows are dealt; what is skipped, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from unify_posttrain.objective import (
    KL,
    Aggregation,
    Count,
    CurrentPolicy,
    Entropy,
    Members,
    MiniBatchUpdate,
    OldPolicy,
    PolicyGradient,
    PPOClip,
    Ranks,
    Shaped,
    Term,
    UpdateRecord,
    compute_loss,
    count_members,
    may_step,
    old_is_current,
)

Batch = dict[str, Tensor]
Result = TypeVar("Result")
TOKEN_MEAN = Aggregation("token-mean")
ROWS, WIDTH = 12, 5

TERMS = (
    Term("rl", PolicyGradient(OldPolicy(), "advantages", PPOClip(0.2, 0.28)), Members("on", "rl_weight"), TOKEN_MEAN),
    Term("off", PolicyGradient(Shaped(), "advantages"), Members("demo"), Aggregation("seq-mean-token-mean"), 0.7),
    Term("sft", PolicyGradient(CurrentPolicy(), 1.0), Members("demo", "sft_weight"), TOKEN_MEAN, counted=Members("trained")),
    Term("entropy", Entropy(), Members("trained"), Aggregation("seq-mean-token-sum"), -0.01),
)


def on_ranks(world: int, work: Callable[[int, Ranks], Result], sequence_parallel: int = 1) -> list[Result]:
    """work(rank, ranks) of every rank, each in a thread; `all_reduce` waits for all of them, as a real one does."""
    barrier, slots = Barrier(world, timeout=20), [torch.empty(0)] * world

    def run(rank: int) -> Result:
        def all_reduce(tensor: Tensor, of: Callable[[Tensor], Tensor] = lambda each: each.sum(dim=0)) -> None:
            slots[rank] = tensor.clone()
            barrier.wait()
            tensor.copy_(of(torch.stack(slots)))
            barrier.wait()

        highest = partial(all_reduce, of=lambda each: each.amax(dim=0))
        try:
            return work(rank, Ranks(all_reduce, world, sequence_parallel, all_reduce_max=highest))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))


def taken(batch: Batch, rows: Sequence[int]) -> Batch:
    return {name: value[list(rows)] for name, value in batch.items()}


def step_of(
    batch: Batch, ranks: Ranks, micro: int, terms: Sequence[Term] = TERMS, **options: object
) -> tuple[MiniBatchUpdate, Tensor]:
    """A step on these rows in micro-batches of `micro`, and the gradient of its losses on their log-probabilities."""
    update = MiniBatchUpdate(terms, batch, ranks, **options)
    leaf = batch["log_probs"].clone().requires_grad_()
    batch, computed = {name: value.clone() for name, value in batch.items()}, torch.arange(len(leaf))
    if update.rows is not None:
        computed = update.rows
        for mask in ("response_mask", "prefix_mask"):
            batch[mask][computed[update.silent]] = 0
    for rows in computed.split(micro):
        update.loss({**taken(batch, rows.tolist()), "log_probs": leaf[rows]}).backward()
    return update, leaf.grad


# --- nothing depends on how rows were dealt ----------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "sequence_parallel"), [(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("micro", [1, 3, 12])
def test_counts_records_and_gradients_are_those_of_the_whole(
    random_batch: Callable, world: int, sequence_parallel: int, micro: int
) -> None:
    batch, scales = random_batch(4, rows=ROWS, width=WIDTH), {"rl": 0.75}
    leaf = batch["log_probs"].clone().requires_grad_()
    loss, metrics = compute_loss(TERMS, {**batch, "log_probs": leaf}, scales=scales)
    gradient = torch.autograd.grad(loss, leaf)[0]
    groups = world // sequence_parallel

    def rows(rank: int) -> range:  # dealt like cards; the ranks of a sequence-parallel group hold the same ones
        return range(rank // sequence_parallel, ROWS, groups)

    def work(rank: int, ranks: Ranks) -> tuple[dict, Tensor, dict]:
        update, own = step_of(taken(batch, rows(rank)), ranks, micro, scales=scales)
        record = UpdateRecord()
        record.add(update, 1.0, stepped=True)
        return update.counts, own, record.reduced(ranks)

    averaged = torch.zeros_like(gradient)
    for rank, (counts, own, record) in enumerate(on_ranks(world, work, sequence_parallel)):
        assert counts == count_members(TERMS, batch)
        assert record.keys() == metrics.keys()
        for name, value in metrics.items():
            assert record[name] == pytest.approx([value.item()], rel=1e-12, abs=1e-15), name
        averaged[list(rows(rank))] += own / world  # what FSDP makes of the gradients of its ranks
    # each rank of a sequence-parallel group was given the whole loss of its rows, where a model would have a share
    torch.testing.assert_close(averaged, gradient, atol=1e-12, rtol=1e-12)


POLICY = TERMS[:3]  # without an entropy bonus, which acts on every row


def half_idle(random_batch: Callable) -> Batch:
    """Rows of which every other one has no advantage; the first half of them all, so that ranks that get blocks differ."""
    batch = random_batch(4, rows=ROWS, width=WIDTH)
    batch["advantages"][: ROWS // 2] = 0
    batch["advantages"][ROWS // 2 :: 3] = 0
    return batch


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 3, 12])
def test_rows_without_a_gradient_are_left_out_of_nothing_but_the_work(random_batch: Callable, world: int, micro: int) -> None:
    batch, scales = half_idle(random_batch), {"rl": 0.75}
    leaf = batch["log_probs"].clone().requires_grad_()
    loss, metrics = compute_loss(POLICY, {**batch, "log_probs": leaf}, scales=scales)
    gradient = torch.autograd.grad(loss, leaf)[0]
    learning = gradient.abs().sum(dim=-1) > 0
    trained = batch["response_mask"].bool().any(dim=-1)
    assert int((trained & ~learning).sum()) > 0
    per_rank = ROWS // world

    def work(rank: int, ranks: Ranks) -> tuple:
        own = taken(batch, range(rank * per_rank, (rank + 1) * per_rank))
        update, found = step_of(own, ranks, micro, terms=POLICY, scales=scales, skips=True)
        record = UpdateRecord()
        record.add(update, 1.0, stepped=True)
        return update, found, record.reduced(ranks)

    results = on_ranks(world, work)
    assert len({len(update.rows) for update, _, _ in results}) == 1, "ranks run as many forward passes"
    most = max(int(part.sum()) for part in learning.split(per_rank))
    assert len(results[0][0].rows) == most < per_rank
    found = torch.cat([own if own is not None else torch.zeros(per_rank, WIDTH) for _, own, _ in results]) / world
    torch.testing.assert_close(found, gradient, atol=1e-12, rtol=1e-12)
    exact = [name for name in metrics if name.endswith(("_loss", "_rho")) or "clipfrac" in name]
    assert len(exact) == 8
    alone = compute_loss(POLICY, taken(batch, learning.nonzero().flatten().tolist()), scales=scales)[1]
    for _, _, record in results:
        assert record.pop("skipped_rows") == [int((trained & ~learning).sum())]
        assert record.keys() == metrics.keys()
        for name in metrics:
            value = metrics[name] if name in exact else alone[name]
            assert record[name] == pytest.approx([value.item()], rel=1e-12, abs=1e-15), name


def test_ranks_that_cannot_agree_on_rows_are_refused(random_batch: Callable) -> None:
    with pytest.raises(ValueError, match="all_reduce_max"):
        MiniBatchUpdate(POLICY, random_batch(4, rows=3, width=WIDTH), Ranks(lambda tensor: None, world=2), skips=True)


def test_where_no_row_has_a_gradient_one_is_computed_in_silence(random_batch: Callable) -> None:
    """An optimizer step is taken all the same, as it is when all rows are computed: decay and moments go on."""
    batch = random_batch(4, rows=ROWS, width=WIDTH)
    for name in ("advantages", "sft_weight"):
        batch[name][:] = 0
    update, gradient = step_of(batch, Ranks(), micro=ROWS, terms=POLICY, skips=True)
    assert not update.empty and update.rows.tolist() == [0] and update.silent.tolist() == [True]
    assert gradient is not None and not gradient.any()
    assert update.shares["on_p"] == 0 and update.shares["total_loss"] == 0


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_a_term_acts_on_the_rows_that_get_a_gradient_of_it(term: Term, random_batch: Callable) -> None:
    for seed in range(8):
        batch = random_batch(seed, rows=ROWS, width=WIDTH)
        batch["advantages"][::2] = 0
        leaves = {name: batch[name].clone().requires_grad_() for name in ("log_probs", "entropys")}
        loss, _ = compute_loss([term], {**batch, **leaves})
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        moved = sum(gradient.abs().sum(dim=-1) for gradient in gradients if gradient is not None) > 0
        acted_on = term.acts_on(batch)
        assert not bool((moved & ~acted_on).any()), "never too few"
        if term.name != "rl":  # whose clip may take a row's gradient away, which is known only when it has been computed
            assert torch.equal(moved, acted_on)


def test_a_term_that_is_only_measured_acts_on_its_members(random_batch: Callable) -> None:
    """`use_kl_loss` with a coefficient of 0 reports how far the policy has gone: over all rows."""
    batch = random_batch(1, rows=ROWS, width=WIDTH)
    measured = Term("kl", KL(), Members("on"), TOKEN_MEAN, coefficient=0.0)
    assert torch.equal(measured.acts_on(batch), Members("on").mask(batch).any(dim=-1))


def test_one_all_reduce_of_a_length_that_the_terms_alone_decide(random_batch: Callable) -> None:
    shapes = []
    ranks = Ranks(lambda tensor: shapes.append(tuple(tensor.shape)))
    for rows in (12, 3):
        MiniBatchUpdate(TERMS, random_batch(4, rows=rows, width=WIDTH), ranks)
    # on, demo, on*rl_weight, demo*sft_weight, trained: tokens and rows of each
    assert shapes == [(10,), (10,)]
    shapes.clear()
    MiniBatchUpdate(TERMS, random_batch(4, rows=3, width=WIDTH), ranks, skips=True)
    assert shapes == [(20,)], "of all rows, and of those that learn"


def test_ranks_that_hold_the_same_rows_count_them_once() -> None:
    # 6 processes in 3 groups of 2; 4 tokens in 2 rows on each: (6*4)/2 = 12 tokens, (6*2)/2 = 6 rows
    ranks = Ranks(lambda tensor: tensor.mul_(6), world=6, sequence_parallel=2)
    assert ranks.data_parallel == 3
    streams = {"response_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    term = Term("t", Entropy(), Members("trained"), TOKEN_MEAN)
    assert MiniBatchUpdate([term], streams, ranks).counts["trained"] == Count(12, 6)


def test_alone_there_is_nothing_to_reduce(random_batch: Callable) -> None:
    batch = random_batch(4, rows=ROWS, width=WIDTH)
    update, _ = step_of(batch, Ranks(), micro=ROWS)
    assert update.counts == count_members(TERMS, batch)
    assert {name: value.item() for name, value in update.shares.items()} == {
        name: value.item() for name, value in compute_loss(TERMS, batch)[1].items()
    }


def test_shares_keep_the_dtype_of_the_loss(random_batch: Callable) -> None:
    batch = random_batch(4, rows=ROWS, width=WIDTH, dtype=torch.float32)
    update, gradient = step_of(batch, Ranks(), micro=5)
    assert gradient.dtype == torch.float32
    assert {value.dtype for value in update.shares.values()} == {torch.float32}
    assert {value.dtype for count in update.counts.values() for value in count} == {torch.float64}


# --- empty mini-batches ------------------------------------------------------------------------------------------------


def test_a_mini_batch_is_empty_if_no_rank_has_a_member(random_batch: Callable) -> None:
    batch = random_batch(4, rows=4, width=WIDTH)
    silent = {**batch, "response_mask": torch.zeros_like(batch["response_mask"]), "prefix_mask": batch["prefix_mask"] & False}
    assert on_ranks(2, lambda rank, ranks: MiniBatchUpdate(TERMS, silent, ranks).empty) == [True, True]

    def one_of_two(rank: int, ranks: Ranks) -> tuple[bool, Tensor, set[str]]:
        update, gradient = step_of(silent if rank else batch, ranks, micro=2)
        return update.empty, gradient, set(update.shares)

    (_, full, keys), (empty, none, same_keys) = on_ranks(2, one_of_two)
    assert not empty, "a rank without members takes the step that the others take"
    assert full.abs().sum() > 0
    assert torch.equal(none, torch.zeros_like(none)), "connected to its graph, finite, and zero"
    assert keys == same_keys


def test_members_of_a_normaliser_alone_are_nothing_to_train() -> None:
    """Rows that are only counted: the one term acts on demonstrations, and there is none."""
    term = Term("t", PolicyGradient(CurrentPolicy(), 1.0), Members("demo"), TOKEN_MEAN, counted=Members("trained"))
    streams = {"response_mask": torch.ones(2, 3), "prefix_mask": torch.zeros(2, 3)}
    assert MiniBatchUpdate([term], streams, Ranks()).empty


def test_an_update_of_empty_mini_batches_has_no_metrics() -> None:
    def refused(_tensor: Tensor) -> None:
        raise AssertionError("nothing to reduce")

    record = UpdateRecord(empty=3)
    assert record.reduced(Ranks(refused)) == {}
    assert (record.grad_norm, record.skipped, record.empty) == (0.0, 0, 3)


# --- the on-policy rule ------------------------------------------------------------------------------------------------


def mixed_row() -> Batch:
    """Columns: own, own, demonstration, hint, padding."""
    return {
        "log_probs": torch.tensor([[0.5, 0.2, 0.4, 0.8, 0.9]], dtype=torch.float64).log(),
        "old_log_probs": torch.tensor([[0.4, 0.4, 0.2, 0.1, 0.1]], dtype=torch.float64).log(),
        "response_mask": torch.tensor([[1, 1, 1, 0, 0]]),
        "prefix_mask": torch.tensor([[False, False, True, True, False]]),
    }


def test_old_is_current_on_sampled_tokens_only() -> None:
    row = mixed_row()
    assert old_is_current(row).exp()[0].tolist() == pytest.approx([0.5, 0.2, 0.2, 0.1, 0.9])
    del row["prefix_mask"]
    assert torch.equal(old_is_current(row), row["log_probs"])
    row["log_probs"].requires_grad_()
    assert not old_is_current(row).requires_grad


@pytest.mark.parametrize("single", [True, False])
def test_a_single_step_is_taken_from_the_policy_that_sampled(single: bool) -> None:
    ratio = PolicyGradient(OldPolicy(), 1.0)
    terms = [Term("on", ratio, Members("on"), TOKEN_MEAN), Term("prefix", ratio, Members("demo"), TOKEN_MEAN)]
    row = mixed_row()
    row["log_probs"].requires_grad_()
    before = {name: value.clone() for name, value in row.items()}
    update = MiniBatchUpdate(terms, row, Ranks(), old_is_current=single)
    update.loss(row).backward()
    # r = .5/.4, .2/.4 or, on-policy, 1, 1; the prefix has .4/.2 either way
    assert update.shares["on_ratio"].item() == pytest.approx(1.0 if single else (1.25 + 0.5) / 2)
    assert update.shares["prefix_ratio"].item() == pytest.approx(2.0)
    expected = [-0.5, -0.5] if single else [-1.25 / 2, -0.5 / 2]
    assert row["log_probs"].grad[0].tolist() == pytest.approx([*expected, -2.0, 0.0, 0.0])
    assert all(torch.equal(row[name], before[name]) for name in before), "the caller's streams are as they were"
    assert update.shares["ppo_kl"].item() == pytest.approx(0.0 if single else before_kl(before), abs=1e-12)


def before_kl(row: Batch) -> float:
    """Mean of log old - log current over the two own tokens: (log(.4/.5) + log(.4/.2))/2."""
    return (row["old_log_probs"] - row["log_probs"])[0, :2].mean().item()


def test_objectives_without_old_log_probabilities_get_none() -> None:
    row = {name: value for name, value in mixed_row().items() if name != "old_log_probs"}
    update = MiniBatchUpdate(
        [Term("t", PolicyGradient(CurrentPolicy(), 1.0), Members("on"), TOKEN_MEAN)], row, Ranks(), old_is_current=True
    )
    update.loss(row)
    assert "ppo_kl" not in update.shares


# --- rows that are not finite, steps that are not taken ------------------------------------------------------------------


def test_rows_that_are_not_finite_are_named_once(random_batch: Callable) -> None:
    batch = random_batch(4, rows=6, width=WIDTH)
    batch["response_mask"] = torch.ones(6, WIDTH, dtype=torch.long)
    batch["response_mask"][4, 0] = 0
    batch["prefix_mask"] = torch.zeros(6, WIDTH, dtype=torch.bool)
    for row, value in ((1, float("nan")), (2, float("-inf")), (4, float("nan")), (5, float("inf"))):
        batch["log_probs"][row, 0] = value
    update = MiniBatchUpdate(TERMS, batch, Ranks())
    labels = ["a", "a", "b", "b", "c", "a"]  # row 4 is broken where nothing is trained
    for rows in torch.arange(6).split(2):
        update.loss(taken(batch, rows.tolist()), [labels[row] for row in rows])
    assert update.suspects() == ["a", "b"]
    nameless = MiniBatchUpdate(TERMS, batch, Ranks())
    nameless.loss(batch)
    assert nameless.suspects() == []


@pytest.mark.parametrize(
    ("norm", "limit", "expected"),
    [
        (0.0, 80.0, True),
        (80.0, 80.0, True),  # above it, not at it
        (80.1, 80.0, False),
        (1e30, None, True),
        (float("nan"), 80.0, False),
        (float("nan"), None, False),
        (float("inf"), None, False),
        (float("inf"), float("inf"), False),
    ],
)
def test_skip_rule(norm: float, limit: float | None, expected: bool) -> None:
    assert may_step(norm, limit) is expected


def test_record_of_several_steps(random_batch: Callable) -> None:
    record, losses = UpdateRecord(), []
    for seed, norm, stepped in ((1, 2.0, True), (2, float("nan"), False), (3, 4.0, True), (4, 90.0, False)):
        batch = random_batch(seed, rows=ROWS, width=WIDTH)
        update, _ = step_of(batch, Ranks(), micro=4)
        record.add(update, norm, stepped)
        losses.append(compute_loss(TERMS, batch)[0].item())
    assert record.reduced(Ranks())["total_loss"] == pytest.approx(losses, rel=1e-12)
    assert len(record.steps) == 4
    assert record.skipped == 2
    assert record.grad_norm == pytest.approx(32.0)  # (2 + 4 + 90)/3


def test_a_missing_mask_is_an_error_before_any_collective(random_batch: Callable) -> None:
    def refused(_tensor: Tensor) -> None:
        raise AssertionError("the other ranks would wait")

    batch = random_batch(4, rows=ROWS, width=WIDTH)
    del batch["prefix_mask"]
    with pytest.raises(KeyError, match="prefix_mask"):
        MiniBatchUpdate(TERMS, batch, Ranks(refused))
