"""The engine as the driver sees it: when it sleeps, what it is asked for, and how answers join their prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto

from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.experience.rules import NO_PREFIX, ResponsePrefix
from unify_posttrain.rollout.agent_loop import NEW_TOKENS_COLUMN, PREFIX_COLUMN, SEED_COLUMN, rollout_seeds
from unify_posttrain.trainer.engine import Engine, request_seed, rollout_requests, seed_rows, with_rollouts

GIVEN = ResponsePrefix((7, 8), trained=True, share=0.5)
PREFIXES = [(NO_PREFIX, GIVEN), (), (NO_PREFIX,)]  # two rollouts of prompt a, none of b, one of c


class Parts:
    """verl's managers of agent loops and of weights: notes in one list what they are told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def generate_sequences(self, rows: DataProto) -> DataProto:
        self.told.append(f"generate {len(rows)}")
        tensors = {"responses": torch.arange(len(rows)).unsqueeze(-1), "response_mask": torch.ones(len(rows), 1)}
        return DataProto.from_dict(tensors=tensors, meta_info={"timing": {"agent_loop/mean": 1.0}})

    def start_profile(self, global_step: int) -> None:
        self.told.append(f"profile {global_step}")

    def stop_profile(self) -> None:
        self.told.append("stop")

    def update_weights(self, step: int) -> None:
        self.told.append(f"weights {step}")

    def sleep_replicas(self) -> None:
        self.told.append("sleep")


def engine(workers: int = 2, reward_model: bool = False) -> tuple[Engine, list[str]]:
    parts = Parts()
    served = {"enable": reward_model, "enable_resource_pool": False}
    rollout = {"agent": {"num_workers": workers}}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "reward": {"reward_model": served}})
    return Engine(config, parts, parts), parts.told


def rows() -> DataProto:
    columns = {"uid": object_column(list("abc")), "row_id": np.array([30, 31, 32])}
    return DataProto.from_dict(tensors={"dummy": torch.zeros(3)}, non_tensors=columns)


def test_it_sleeps_once_and_wakes_only_to_be_used() -> None:
    it, told = engine()
    timing: dict[str, float] = {}
    it.sleep_replicas()
    it.receive_weights(False, 1, timing)
    assert not told and not it.awake and timing == {"update_weights": 0.0}
    it.receive_weights(True, 2, timing)
    assert told == ["weights 2"] and it.awake and timing["update_weights"] > 0
    it.give_way()  # to nobody
    it.wake(timing)
    assert told == ["weights 2"] and it.awake
    it.sleep_replicas()
    it.sleep_replicas()
    assert told == ["weights 2", "sleep"] and not it.awake


def test_it_takes_turns_with_a_reward_model() -> None:
    """It wakes with the weights of the last step when it is asked to generate, and sleeps before anything is scored."""
    it, told = engine(reward_model=True)
    requests, timing = rollout_requests(rows(), PREFIXES, seed=0, step=5), {}
    it.update_weights(4)  # verl, at the start of the run
    it.give_way()  # demonstrations are scored
    it.generate(requests, timing, sleep_after=False, profiled=False)
    assert told == ["weights 4", "sleep", "weights 4", "generate 4", "sleep"] and timing["update_weights"] > 0
    before = timing["update_weights"]
    it.receive_weights(True, 5, timing)
    assert not it.awake and timing["update_weights"] == before
    it.wake(timing)
    assert told[5:] == ["weights 5"] and timing["update_weights"] > before


def test_requests_are_shared_evenly_and_padding_does_not_come_back() -> None:
    it, told = engine()
    it.update_weights(4)
    told.clear()
    timing: dict[str, float] = {}
    requests = rollout_requests(rows(), PREFIXES, seed=0, step=5)
    assert it.generate(requests, timing, sleep_after=False, profiled=False).batch["responses"].flatten().tolist() == [0, 1, 2]
    assert told == ["generate 4"] and it.awake and set(timing) == {"gen", "agent_loop/mean"}
    it.generate(requests, timing, sleep_after=True, profiled=True)
    assert told[1:] == ["profile 5", "generate 4", "sleep", "stop"]


def test_a_request_per_rollout_with_a_seed_and_a_prefix_of_its_own() -> None:
    requests = rollout_requests(rows(), PREFIXES, seed=4, step=5)
    columns = requests.non_tensor_batch
    assert "".join(columns["uid"]) == "aac" and requests.meta_info["global_steps"] == 5
    assert columns[SEED_COLUMN].tolist() == rollout_seeds(4, 5, np.array([30, 30, 32])).tolist()
    assert list(columns[PREFIX_COLUMN]) == [[], [7, 8], []]
    plain = rollout_requests(rows(), [(NO_PREFIX,)] * 3, seed=4, step=5)
    assert PREFIX_COLUMN not in plain.non_tensor_batch


def test_a_limit_on_new_tokens_is_a_column_of_every_request() -> None:
    """That of the experience rule; without one there is no column, and validation has none either."""
    limited = rollout_requests(rows(), PREFIXES, seed=4, step=5, max_new_tokens=6)
    assert limited.non_tensor_batch[NEW_TOKENS_COLUMN].tolist() == [6, 6, 6]
    for plain in (rollout_requests(rows(), PREFIXES, seed=4, step=5), seed_rows(rows(), 4, 5, validate=True)):
        assert NEW_TOKENS_COLUMN not in plain.non_tensor_batch


@pytest.mark.parametrize(
    ("flags", "seed"),
    [
        (["fusion.seed=4"], 4),
        (["fusion.seed=4", "trainer.seed_rollouts=false"], None),
        (["hardware=gpu_1"], None),  # vLLM draws in a Python loop for requests with seeds
        (["hardware=node_8gpu"], None),
        (["hardware=node_8gpu", "trainer.seed_rollouts=true"], 0),
    ],
)
def test_seeds_per_request_are_a_switch(flags: list[str], seed: int | None) -> None:
    assert request_seed(compose_config(flags)) == seed
    requests = rollout_requests(rows(), PREFIXES, seed, step=5)
    assert (SEED_COLUMN in requests.non_tensor_batch) == (seed is not None)
    assert (SEED_COLUMN in seed_rows(rows(), seed, 5, validate=True).non_tensor_batch) == (seed is not None)
    assert PREFIX_COLUMN in requests.non_tensor_batch


def test_validation_draws_from_seeds_of_its_own() -> None:
    seeds = seed_rows(rows(), 4, 5, validate=True).non_tensor_batch[SEED_COLUMN].tolist()
    assert not set(seeds) & set(rollout_seeds(4, 5, np.array([30, 31, 32])).tolist())
    foreign = DataProto.from_dict(non_tensors={"uid": object_column(["x"])})  # a validation file without row_id
    assert SEED_COLUMN not in seed_rows(foreign, 4, 5, validate=True).non_tensor_batch


def test_answers_join_their_prompts() -> None:
    it, _ = engine()
    rollouts = it.generate(rollout_requests(rows(), PREFIXES, 0, 1), {}, sleep_after=True, profiled=False)
    joined = with_rollouts(rows(), rollouts, PREFIXES)
    assert joined.non_tensor_batch["row_id"].tolist() == [30, 30, 32] and joined.batch["responses"].flatten().tolist() == [0, 1, 2]
    assert list(joined.non_tensor_batch[PREFIX_COLUMN]) == [[], [7, 8], []]
