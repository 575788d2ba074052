"""How a step begins: with its phase's algorithm, optimizer steps and sampling, and with every algorithm's own metrics at 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from verl import DataProto

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience.rows import object_column
from unify_posttrain.experience.rules import NO_PREFIX
from unify_posttrain.rollout.agent_loop import NEW_TOKENS_COLUMN
from unify_posttrain.trainer.fusion_trainer import FusionTrainer
from unify_posttrain.trainer.phases import PhaseClock
from unify_posttrain.trainer.prompts import Prompts
from unify_posttrain.trainer.step import Step
from unify_posttrain.workers.metrics import OWN_METRICS

SFT_DAPO = ("algorithm=sft_then_rl", "fusion.phases=[{algorithm: sft, steps: 3}, {algorithm: dapo}]")


class Beginning(FusionTrainer):
    """A trainer of which only the beginning of a step is used; it is its own port and its own engine."""

    def __init__(self, config: DictConfig, algorithm: Algorithm) -> None:
        self.config, self.clock, self.fusion = config, PhaseClock(algorithm.phases), algorithm.fusion
        self.actor_rollout_wg, self.total_training_steps, self.curr_step_profile = None, 100, False
        self.port = self.engine = self
        self.told: list[tuple[int, int]] = []
        self.requests: DataProto | None = None

    def start_phase(self, index: int, total_steps: int) -> None:
        self.told.append((index, total_steps))

    def _get_gen_batch(self, batch: DataProto) -> DataProto:
        return batch

    def generate(self, requests: DataProto, *_: Any) -> DataProto:
        self.requests = requests
        return DataProto.from_dict(tensors={"response_mask": torch.ones(len(requests), 1)})

    def at(self, number: int) -> Step:
        self.global_steps, self.metrics, self.timing_raw = number, {}, {}
        self._fit_prepare_step()
        return self.step


@pytest.fixture(scope="session")
def beginning(composed: Callable[..., DictConfig], algorithm: Callable[..., Algorithm]) -> Callable[..., Beginning]:
    return lambda *flags: Beginning(composed(*flags), algorithm(*flags))


def test_a_step_has_the_settings_of_its_phase(beginning: Callable[..., Beginning]) -> None:
    it = beginning(*SFT_DAPO)
    found = [(step.algorithm.name, step.mini_batches, step.sampling is not None) for step in map(it.at, (1, 3, 4, 5))]
    # sft.yaml: one optimizer step; dapo.yaml: as the run, 32 / 16, and dynamic sampling
    assert found == [("sft", 1, False)] * 2 + [("dapo", 2, True)] * 2
    assert it.step.sampling.wanted == 32 and it.step.number == 5
    assert it.told == [(1, 97)], "the workers are told once, before step 4 of 100"
    assert it.metrics["fusion/phase"] == 1.0


def test_a_run_of_one_phase_has_the_runs_settings(beginning: Callable[..., Beginning]) -> None:
    dapo = beginning("algorithm=dapo", "data.train_batch_size=24", "actor_rollout_ref.actor.ppo_mini_batch_size=8").at(1)
    assert (dapo.mini_batches, dapo.sampling.wanted) == (3, 24)
    assert beginning("algorithm=dapo", "algorithm.filter_groups.enable=false").at(1).sampling is None
    assert beginning("algorithm=grpo").at(1).sampling is None


def test_own_metrics_are_there_whatever_the_algorithm(beginning: Callable[..., Beginning]) -> None:
    """0 until someone fills them; CHORD's μ is known when the step begins: 0 to .5 over 200 steps, the first is one of them."""
    assert {"fusion/chord_mu", "fusion/kl_seq", "fusion/srft_H"} <= set(OWN_METRICS)
    zero = dict.fromkeys(OWN_METRICS, 0.0) | {"fusion/phase": 0.0}
    for name in ("hpt", "srft", "online_sft"):
        it = beginning(f"algorithm={name}")
        it.at(1)
        assert it.metrics == zero
    chord = beginning("algorithm=chord")
    for number, mu in ((1, 0.0025), (2, 0.005), (200, 0.5)):
        chord.at(number)
        assert chord.metrics == zero | {"fusion/chord_mu": pytest.approx(mu)}


@pytest.mark.parametrize(("name", "limit"), [("uft", None), ("uft_released", 32), ("grpo", None)])
def test_the_rules_limit_on_new_tokens_is_asked_of_the_engine(
    beginning: Callable[..., Beginning], name: str, limit: int | None
) -> None:
    """Half of data.max_response_length=64."""
    it = beginning(f"algorithm={name}")
    columns = {"uid": object_column(["a", "b"]), "row_id": np.array([3, 4])}
    batch = DataProto.from_dict(tensors={"dummy": torch.zeros(2)}, non_tensors=columns)
    it.at(1).prompts = Prompts(batch, {}, [(NO_PREFIX, NO_PREFIX), (NO_PREFIX,)])
    assert len(it._fit_generate(batch)) == 3
    asked = it.requests.non_tensor_batch
    assert asked[NEW_TOKENS_COLUMN].tolist() == [limit] * 3 if limit else NEW_TOKENS_COLUMN not in asked
