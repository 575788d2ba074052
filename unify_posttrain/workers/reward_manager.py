"""verl's manager of reward workers, with one of them in the driver where that is safe.

A process that only scores imports verl all the same: five seconds of a core, at the start of every run. Functions of this package
bring their own processes for what can hang (`unify_posttrain.rewards.pool`), so they may be called from the driver. Those of users
stay in a worker: the driver never imports them. Several workers are for several nodes, or for more than one process can score.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental import reward_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopManager

from unify_posttrain.rewards.calling import gatherers
from unify_posttrain.rewards.protection import is_own
from unify_posttrain.workers.reward_worker import FusionRewardLoopWorker

MANAGERS = ("naive", "dapo")  # of verl's, those that only call the function


class Remote:
    """A method as Ray's handles have it, which is done when `remote` returns."""

    def __init__(self, method: Callable[..., Future[Any]]) -> None:
        self._method = method

    def remote(self, *args: Any) -> ray.ObjectRef:
        """Call it; the result as a reference."""
        return ray.put(self._method(*args).result())


class DriverRewards:
    """A reward worker in this process, in an event loop and a thread of its own; verl takes it for the handle of an actor.

    Args:
        config: of the run.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()
        self._worker: FusionRewardLoopWorker = self._run(self._made()).result()
        self._actor: Any = None
        self.compute_score_batch = Remote(self.start)

    async def _made(self) -> FusionRewardLoopWorker:
        return FusionRewardLoopWorker(self.config, None)  # verl's reward managers look for the loop that they are made in

    def _run(self, task: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    def start(self, data: DataProto) -> Future[list[dict[str, Any]]]:
        """Begin to score the rows of a batch."""
        return self._run(self._worker.compute_score_batch(data))

    async def scores(self, data: DataProto) -> list[dict[str, Any]]:
        """Score the rows of a batch; the caller's event loop goes on meanwhile."""
        return await asyncio.wrap_future(self.start(data))

    def as_actor(self) -> Any:
        """The same as a worker in a process of its own, for those who are not in this one; started when it is first asked for."""
        if self._actor is None:
            self._actor = ray.remote(FusionRewardLoopWorker).options(name="reward_loop_worker_0").remote(self.config, None)
        return self._actor

    def close(self) -> None:
        """End the thread, and the processes that score."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        gatherers.close()


def in_driver(config: DictConfig) -> bool:
    """Whether the run's reward function is called from the driver: one of this package, by one worker, without a reward model."""
    reward = config.reward
    function = OmegaConf.to_container(reward.custom_reward_function, resolve=True)
    manager = reward.reward_manager.source == "register" and reward.reward_manager.name in MANAGERS
    return bool(manager and not reward.reward_model.enable and reward.num_workers == 1 and is_own(function))


class FusionRewardLoopManager(RewardLoopManager):
    """verl's; a single worker is in the driver if it may be."""

    def _init_reward_loop_workers(self) -> None:
        if in_driver(self.config):
            self.reward_loop_workers = [DriverRewards(self.config)]
        else:
            super()._init_reward_loop_workers()


def end(trainer: Any) -> None:
    """End what runs in this process; Ray ends the rest. A trainer that did not come so far has none."""
    manager = getattr(trainer, "reward_loop_manager", None)
    for worker in manager.reward_loop_workers if manager is not None else []:
        if isinstance(worker, DriverRewards):
            worker.close()


def install() -> None:
    """Have verl's trainer build this manager; it looks the class up when it builds one."""
    reward_loop.RewardLoopManager = FusionRewardLoopManager
