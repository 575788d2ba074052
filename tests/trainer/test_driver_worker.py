"""The only worker of a run in the driver: what a process of its own would keep apart is kept apart here, too."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from verl.workers.rollout.replica import CONTROL_METHOD_CONCURRENCY

from unify_posttrain.config import compose_config
from unify_posttrain.devices import openmp_of, worker_in_driver
from unify_posttrain.rollout.hf_start import CONTROL_CALLS
from unify_posttrain.trainer import driver_worker
from unify_posttrain.trainer.driver_worker import DriverClass, DriverWorker, Host, Place, group_here, keeping_arguments
from unify_posttrain.trainer.worker_group import FusionWorkerGroup

RUN = ("algorithm=grpo", "actor_rollout_ref.model.path=none")


class Ref:
    """Stands for what Ray's object store holds: bytes."""

    def __init__(self, value: Any) -> None:
        self.content = pickle.dumps(value)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(ObjectRef=Ref, put=Ref, get=lambda ref: pickle.loads(ref.content))
    monkeypatch.setattr(driver_worker, "ray", ray)


class Worker:
    """A worker of some verl."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.first = torch.rand(3)

    def draw(self) -> tuple[torch.Tensor, float, float]:
        return torch.rand(3), float(np.random.random()), random.random()

    def seed(self, number: int) -> None:
        torch.manual_seed(number)

    def keep(self, rows: list[int], *, column: dict[str, int]) -> list[Any]:
        rows.append(len(rows))
        column["more"] = 1
        self.seen = [rows, column, torch.get_num_threads()]
        return self.seen

    async def later(self, value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    def fail(self) -> None:
        torch.rand(1)
        raise KeyError("mine")


@pytest.fixture
def worker() -> Any:
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield DriverWorker(Worker, threads=2, thread=thread)


def get(ref: Ref) -> Any:
    return driver_worker.ray.get(ref)


def test_its_draws_are_its_own(worker: Any) -> None:
    """The driver's go on as if nobody else had drawn, and the worker's from call to call."""
    alone = torch.Generator().manual_seed(0)
    torch.manual_seed(5)
    expected = torch.rand(6)
    torch.manual_seed(5)
    mine = [torch.rand(3)]
    drawn, *others = get(worker.draw.remote())
    mine.append(torch.rand(3))
    assert torch.equal(worker._worker.first, torch.rand(3, generator=alone))
    assert torch.equal(drawn, torch.rand(3, generator=alone))
    assert torch.equal(torch.cat(mine), expected)
    np.random.seed(1)
    random.seed(1)
    driver = np.random.get_state()[1].tolist(), random.getstate()
    get(worker.seed.remote(9))
    again, *more = get(worker.draw.remote())
    assert torch.equal(again, torch.rand(3, generator=torch.Generator().manual_seed(9))), "its own state goes on between calls"
    assert others != more and (np.random.get_state()[1].tolist(), random.getstate()) == driver


def test_what_is_sent_and_returned_is_copied(worker: Any) -> None:
    """By hand or through the object store, as verl does with the shares of ranks."""
    rows, column = [3], {"a": 0}
    threads = torch.get_num_threads()
    answer = get(worker.keep.remote(Ref(rows), column=column))
    assert answer == [[3, 1], {"a": 0, "more": 1}, 2] and rows == [3] and column == {"a": 0}
    assert torch.get_num_threads() == threads
    answer[0].clear()
    assert worker._worker.seen[0] == [3, 1]


def test_asynchronous_methods_are_answered_within_a_running_loop(worker: Any) -> None:
    async def ask() -> int:
        return get(worker.later.remote(4))

    assert asyncio.run(ask()) == get(worker.later.remote(4)) == 5


def test_the_thread_beside_the_one_that_computes_has_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads of OpenMP than cores, in a process, sleep between any two operations."""
    given: list[ThreadPoolExecutor] = []
    monkeypatch.setattr(driver_worker, "group_here", lambda threads, thread: given.append(thread))
    threads = torch.get_num_threads()
    try:
        with Host().place(compose_config([*RUN])):
            assert given[0].submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(threads)


def test_an_error_is_raised_and_leaves_the_driver_as_it_was(worker: Any) -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(KeyError, match="mine"):
        worker.fail.remote()
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_a_worker_changes_copies_of_its_arguments() -> None:
    class Changing:
        def __init__(self, config: dict[str, list[int]], role: str) -> None:
            config["sizes"].append(1)
            self.config, self.role = config, role

    config: dict[str, list[int]] = {"sizes": []}
    made = keeping_arguments(Changing)
    assert made(config, role="actor").config == {"sizes": [1]} and config == {"sizes": []}
    assert made.__name__ == "Changing" and issubclass(made, Changing), "verl finds its base class by the name"


@pytest.mark.parametrize(
    ("overrides", "here"),
    [
        ((), True),
        (("trainer.worker_in_driver=false",), False),
        (("trainer.n_gpus_per_node=2",), False),
        (("trainer.nnodes=2",), False),
        (("hide_gpus=false",), False),
        (("actor_rollout_ref.rollout.name=vllm",), False),
        (("hardware=gpu_1",), False),
    ],
)
def test_which_worker_comes_here(overrides: tuple[str, ...], here: bool) -> None:
    config = compose_config([*RUN, *overrides])
    assert worker_in_driver(config) is here
    with Host().place(config) as place:
        assert (place.group is FusionWorkerGroup) is not here


def test_one_worker_per_process_and_nothing_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    host, config = Host(), compose_config([*RUN, "+ray_kwargs.ray_init.runtime_env.env_vars.MINE=yes"])
    assert openmp_of(config).keys() == {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    with host.place(config) as place:
        assert os.environ["MINE"] == "yes" and "OMP_WAIT_POLICY" not in os.environ
        made = DriverClass(SimpleNamespace(cls=Worker), lambda cls: cls())
        made.update_options({"runtime_env": {"env_vars": {"RANK": "0", "MASTER_PORT": "1234"}}, "name": "x"})
        assert isinstance(made(placement_group=None, use_gpu=True), Worker)
        assert os.environ["RANK"] == "0" and issubclass(place.group, FusionWorkerGroup)
    assert os.environ["RANK"] == "7" and "MASTER_PORT" not in os.environ and "MINE" not in os.environ
    with host.place(config) as place:
        assert place == Place(), "a later run of a sweep has a process for its worker"


def test_verls_group_takes_it_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's own code makes the group, and a group of the same workers for every role."""
    made: list[Any] = []
    monkeypatch.setattr(FusionWorkerGroup, "__init__", lambda self, **given: made.append(given))
    with ThreadPoolExecutor(max_workers=1) as thread:
        group = group_here(2, thread)
        given = SimpleNamespace(cls=Worker)
        group(resource_pool="pool", ray_cls_with_init=given)
        group(resource_pool=None, ray_cls_with_init=given, worker_handles=["w"])
    assert isinstance(made[0]["ray_cls_with_init"], DriverClass) and made[0]["resource_pool"] == "pool"
    assert made[1] == {"resource_pool": None, "ray_cls_with_init": given, "worker_handles": ["w"]}


def test_the_server_takes_as_many_calls_as_verls() -> None:
    assert CONTROL_CALLS == CONTROL_METHOD_CONCURRENCY
