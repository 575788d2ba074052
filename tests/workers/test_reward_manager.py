"""One reward worker of this package's functions is in the driver, and is to everybody what one in a process of its own is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from omegaconf import DictConfig
from verl import DataProto
from verl.experimental import reward_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopManager

from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.rewards.calling import OUTCOME
from unify_posttrain.tasks.tiny_model import build_tokenizer
from unify_posttrain.workers import reward_manager
from unify_posttrain.workers.reward_manager import DriverRewards, FusionRewardLoopManager, in_driver

TEXTS = ("answer 3", "answer 4", "1\nanswer 3")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    folder = tmp_path_factory.mktemp("model")
    build_tokenizer(256).save_pretrained(folder)
    return composed(f"actor_rollout_ref.model.path={folder}")


def composed(*overrides: str) -> DictConfig:
    return compose_config(["algorithm=grpo", *overrides])


@pytest.fixture
def worker(config: DictConfig) -> Iterator[DriverRewards]:
    made = DriverRewards(config)
    yield made
    made.close()


def rows() -> DataProto:
    tokenizer = build_tokenizer(256)
    given = [tokenizer(text)["input_ids"] for text in TEXTS]
    width = max(map(len, given))
    ids = torch.tensor([[*each, *[0] * (width - len(each))] for each in given])
    mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in given])
    return DataProto.from_dict(
        tensors={
            "responses": ids,
            "prompts": torch.zeros(len(TEXTS), 1, dtype=int),
            "attention_mask": torch.cat([torch.ones(len(TEXTS), 1, dtype=int), mask], dim=1),
        },
        non_tensors={
            "data_source": object_column(["arithmetic_easy"] * len(TEXTS)),
            "reward_model": object_column([{"ground_truth": "3"}] * len(TEXTS)),
            "extra_info": object_column([{}] * len(TEXTS)),
        },
    )


def elsewhere(config: DictConfig, data: DataProto) -> list[dict[str, Any]]:
    async def scored() -> list[dict[str, Any]]:
        return await reward_manager.FusionRewardLoopWorker(config).compute_score_batch(data)

    return asyncio.run(scored())


def test_it_scores_as_a_process_does(config: DictConfig, worker: DriverRewards) -> None:
    expected = elsewhere(config, rows())
    assert [each["reward_score"] for each in expected] == [1.0, 0.0, 1.0]
    assert all(OUTCOME in each["reward_extra_info"] for each in expected)
    # Every batch of rollouts has an event loop of its own.
    assert asyncio.run(worker.scores(rows())) == expected == asyncio.run(worker.scores(rows()))


def test_verls_manager_takes_it_for_an_actor(config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compute_rm_score` scores demonstrations; here with what Ray would store and fetch."""
    stored: list[Any] = []
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or len(stored) - 1)
    monkeypatch.setattr(ray, "get", lambda references: [stored[reference] for reference in references])
    manager = FusionRewardLoopManager(config)
    try:
        scored = manager.compute_rm_score(rows())
    finally:
        reward_manager.end(SimpleNamespace(reward_loop_manager=manager))
    assert scored.batch["rm_scores"].sum(dim=-1).tolist() == [each["reward_score"] for each in elsewhere(config, rows())]


def test_what_it_started_ends(config: DictConfig) -> None:
    before = set(threading.enumerate())
    worker = DriverRewards(config)
    assert "rewards" in {thread.name for thread in set(threading.enumerate()) - before}
    worker.close()
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name == "rewards"}
    reward_manager.end(SimpleNamespace())  # a trainer that did not come so far


def test_other_processes_get_one_actor(worker: DriverRewards, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Remote:
        def options(self, **given: Any) -> Remote:
            return self

        def remote(self, *arguments: Any) -> Any:
            started.append(arguments)
            return object()

    monkeypatch.setattr(ray, "remote", lambda cls: Remote())
    assert worker.as_actor() is worker.as_actor()
    assert started == [(worker.config, None)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], True),
        (["algorithm=dapo"], True),
        (["reward.num_workers=2"], False),
        (["reward.custom_reward_function.path=/somewhere/mine.py", "reward.custom_reward_function.name=score"], False),
        (["reward.reward_manager.name=rate_limited"], False),
        (["reward.reward_manager.source=importlib"], False),
        (["reward.reward_model.enable=true"], False),
        (["reward.custom_reward_function.path=null"], False),
    ],
)
def test_which_rewards_are_in_the_driver(overrides: list[str], expected: bool) -> None:
    assert in_driver(composed(*overrides)) is expected


def test_the_trainer_builds_this_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_loop, "RewardLoopManager", RewardLoopManager)  # put back afterwards
    reward_manager.install()
    assert reward_loop.RewardLoopManager is FusionRewardLoopManager


def test_users_functions_are_scored_in_a_process(config: DictConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """verl's way, which starts actors."""
    started: list[str] = []
    monkeypatch.setattr(RewardLoopManager, "_init_reward_loop_workers", lambda self: started.append("actors"))
    mine = config.copy()
    mine.reward.custom_reward_function.path = str(tmp_path / "mine.py")
    FusionRewardLoopManager(mine)
    assert started == ["actors"]
