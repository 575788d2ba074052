"""The training loader against torchdata's own: batches in the middle of a step, epochs, and resuming at any batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from unify_posttrain.trainer.loader import TrainLoader

ROWS, BATCH = 14, 3  # four batches per epoch, two rows left over
PER_EPOCH = ROWS // BATCH


def make(workers: int = 0) -> TrainLoader:
    """As verl builds it: a sampler that can be resumed, incomplete batches dropped."""
    sampler = RandomSampler(range(ROWS), generator=torch.Generator().manual_seed(3))
    return TrainLoader(
        StatefulDataLoader(range(ROWS), batch_size=BATCH, sampler=sampler, drop_last=True, num_workers=workers, collate_fn=tuple)
    )


def epochs(loader: TrainLoader) -> Iterator[tuple[int, ...]]:
    """The trainer's loop over epochs."""
    while True:
        yield from loader


def taken(loader: TrainLoader, pattern: str) -> list[tuple[int, ...]]:
    """Batches in order: `m` the loop's next, `x` an extra one within the step."""
    loop = epochs(loader)
    return [next(loop) if kind == "m" else loader.extra() for kind in pattern]


def test_without_extras_it_is_the_loader() -> None:
    loader = make()
    plain = make().loader
    assert len(loader) == len(plain) == PER_EPOCH
    assert [list(loader) for _ in range(3)] == [list(plain) for _ in range(3)]
    assert loader.batches == 3 * PER_EPOCH
    assert loader.sampler is loader.loader.sampler and list(loader.dataset) == list(range(ROWS))


@pytest.mark.parametrize(
    "pattern",
    [
        "mxmxmxmxmxmx",  # one extra per step
        "mmmxmmmxmmmx",  # the extra is the epoch's last: the next pass is the next epoch
        "mmmmxmmmmmmm",  # the loop took the last, the extra comes from the next epoch
        "mxxxxxxmmmmm",  # a step that uses up an epoch and more
    ],
)
def test_every_batch_is_handed_out_once_and_in_order(pattern: str) -> None:
    loader = make()
    plain = list(islice(epochs(make()), len(pattern)))
    assert taken(loader, pattern) == plain
    assert loader.batches == len(pattern)
    for epoch in range(len(pattern) // PER_EPOCH):
        rows = [row for batch in plain[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH] for row in batch]
        assert len(set(rows)) == PER_EPOCH * BATCH


@pytest.mark.parametrize("pattern", ["m" * 10, "mxmmmxmmxm", "mmmxmmmxmm", "mmmmxmmxxm"])
def test_a_resume_after_any_step_hands_out_the_same_batches(pattern: str) -> None:
    check_resumes(pattern, range(1, len(pattern)), make)


def test_a_resume_with_worker_processes() -> None:
    """They fetch ahead; what was fetched and not handed out is fetched again."""
    check_resumes("mmmmmm", (3, 4), lambda: make(workers=1))


def check_resumes(pattern: str, stops: range | tuple[int, ...], make: Callable[[], TrainLoader]) -> None:
    whole = taken(make(), pattern)
    for stopped in stops:
        if pattern[stopped] == "x":
            continue  # checkpoints are written between steps
        loader = make()
        loop = epochs(loader)
        for kind in pattern[:stopped]:
            next(loop) if kind == "m" else loader.extra()
        state, batches = copy.deepcopy(loader.state_dict()), loader.batches
        resumed = make()
        resumed.load_state_dict(state)
        resumed.restore(batches)
        assert taken(resumed, pattern[stopped:]) == whole[stopped:], f"stopped after {stopped} of {pattern}"
        assert resumed.batches == len(pattern)


def test_a_loader_that_is_elsewhere_is_refused() -> None:
    loader = make()
    with pytest.raises(RuntimeError, match=r"not where batch 4 left it.*data\.pt"):
        loader.restore(PER_EPOCH)
    make().restore(0)  # a run that has not begun
