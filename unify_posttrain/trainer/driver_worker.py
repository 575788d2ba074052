"""The worker of a run that has one rank, in the driver: a process less that starts and imports verl (`trainer.worker_in_driver`).

verl's trainer speaks to it as to every worker, through a group and Ray's object store. So it gets copies of what is sent, and what
it returns is copied. What a process has to itself is kept apart: variables, random draws, torch threads, and the configuration.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from verl.single_controller.ray.base import RayClassWithInitArgs, _unwrap_ray_remote

from unify_posttrain.devices import NUM_THREADS, openmp_of, variables_of, worker_in_driver
from unify_posttrain.trainer.worker_group import FusionWorkerGroup
from unify_posttrain.workers.loopback import INIT_METHOD

# What verl tells a worker, and workers tell each other, by the environment.
VARIABLES = (
    *("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "RAY_LOCAL_WORLD_SIZE", "WG_PREFIX", "WG_BACKEND"),
    *("MASTER_ADDR", "MASTER_PORT", "REDIS_STORE_SERVER_HOST", INIT_METHOD),
)


@dataclass(frozen=True)
class Place:
    """Where the workers of a run are.

    Attributes:
        group: verl's group of them.
        prepared: takes a worker's class, returns the one to start.
    """

    group: type[FusionWorkerGroup] = FusionWorkerGroup
    prepared: Callable[[type], type] = lambda worker: worker


class Host:
    """The driver as the place of a worker.

    Attributes:
        free: whether one may still come. A second one, of a later run of a sweep, would find torch's process group, verl's changes
            to transformers and OpenMP's settings as the first has left them.
    """

    def __init__(self) -> None:
        self.free = True

    @contextmanager
    def place(self, config: DictConfig) -> Iterator[Place]:
        """This process, until the end of the context, if the configuration wants that and it is free; else processes of Ray's."""
        if not (self.free and worker_in_driver(config)):
            yield Place()
            return
        self.free = False
        openmp = openmp_of(config)
        given = {name: value for name, value in variables_of(config).items() if name not in openmp}
        with restored({*given, *VARIABLES}), ThreadPoolExecutor(1, "worker", leave_openmp) as thread:
            os.environ.update(given)
            try:
                yield Place(group_here(int(openmp.get(NUM_THREADS, 1)), thread), keeping_arguments)
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()
                gc.unfreeze()  # a worker freezes what is there when its model is


HOST = Host()


def group_here(threads: int, thread: ThreadPoolExecutor) -> type[FusionWorkerGroup]:
    """The group of a worker in this process.

    Args:
        threads: of torch, while the worker computes.
        thread: runs what the worker does asynchronously.
    """

    class DriverWorkerGroup(FusionWorkerGroup):
        def __init__(self, resource_pool: Any = None, ray_cls_with_init: Any = None, **kwargs: Any) -> None:
            if resource_pool is not None:  # else a group of workers that exist
                ray_cls_with_init = DriverClass(ray_cls_with_init, partial(DriverWorker, threads=threads, thread=thread))
            super().__init__(resource_pool=resource_pool, ray_cls_with_init=ray_cls_with_init, **kwargs)

    return DriverWorkerGroup


def leave_openmp() -> None:
    """For a thread beside the one that computes: none of OpenMP's for it. More of them than cores, in a process, go to sleep
    between any two operations."""
    torch.set_num_threads(1)


class DriverClass:
    """In place of verl's class of a worker with its arguments: makes the worker here, with the variables that verl gives it."""

    fused_worker_used = False

    def __init__(self, given: RayClassWithInitArgs, handle: Callable[[type], DriverWorker]) -> None:
        self.cls, self._handle = given.cls, handle
        self._options: dict[str, Any] = {}

    def update_options(self, options: Mapping[str, Any]) -> None:
        self._options.update(options)

    def __call__(self, **_: Any) -> DriverWorker:
        """Where and on which accelerator Ray would place it does not matter here."""
        os.environ.update(self._options["runtime_env"]["env_vars"])
        return self._handle(_unwrap_ray_remote(self.cls))


class DriverWorker:
    """Answers as Ray's handle of an actor, `worker.method.remote(...)`, once the method has returned.

    Args:
        made: the worker's class, which takes no arguments.
        threads, thread: as for `group_here`.
    """

    def __init__(self, made: type, threads: int, thread: ThreadPoolExecutor) -> None:
        self._threads, self._thread, self._draws = threads, thread, first_draws()
        with self._own():
            self._worker = made()

    def __getattr__(self, name: str) -> _Method:
        return _Method(partial(self._call, getattr(self._worker, name)))

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs = ray.get(ray.put((_arrived(args), dict(zip(kwargs, _arrived(kwargs.values()), strict=True)))))
        with self._own():
            if inspect.iscoroutinefunction(method):  # verl calls from a running loop, in which no other can run
                result = self._thread.submit(asyncio.run, method(*args, **kwargs)).result()
            else:
                result = method(*args, **kwargs)
        return ray.put(result)

    @contextmanager
    def _own(self) -> Iterator[None]:
        """Threads and random draws of the worker; the driver's afterwards."""
        threads, draws = torch.get_num_threads(), get_draws()
        torch.set_num_threads(self._threads)
        set_draws(self._draws)
        try:
            yield
        finally:
            self._draws = get_draws()
            set_draws(draws)
            torch.set_num_threads(threads)


class _Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


def _arrived(values: Any) -> tuple[Any, ...]:
    return tuple(ray.get(value) if isinstance(value, ray.ObjectRef) else value for value in values)


def first_draws() -> tuple[Any, ...]:
    """States of torch's, numpy's and Python's generators to begin with. In a process of its own they would be anybody's guess."""
    return torch.Generator().manual_seed(0).get_state(), np.random.RandomState(0).get_state(), random.Random(0).getstate()


def get_draws() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_draws(draws: tuple[Any, ...]) -> None:
    torch.set_rng_state(draws[0])
    np.random.set_state(draws[1])
    random.setstate(draws[2])


@contextmanager
def restored(names: Iterable[str]) -> Iterator[None]:
    """These variables of the environment are as before after the context."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def keeping_arguments(worker: type) -> type:
    """The same worker, which changes copies of its arguments: verl's write into their configuration, here the driver's own."""

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        worker.__init__(self, *copy.deepcopy(args), **copy.deepcopy(kwargs))  # type: ignore[misc]

    return type(worker.__name__, (worker,), {"__init__": begin, "__module__": worker.__module__})
