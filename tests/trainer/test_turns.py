"""Engine and reward model on the same accelerators: never awake together, whatever a step does, and the engine never stale."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from verl import DataProto

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience.demonstrations import DemonstrationReader
from unify_posttrain.experience.rows import object_column
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.dynamic_sampling import DynamicSampling
from unify_posttrain.trainer.engine import Engine
from unify_posttrain.trainer.fusion_trainer import FusionTrainer
from unify_posttrain.trainer.loader import TrainLoader
from unify_posttrain.trainer.phases import PhaseClock
from unify_posttrain.trainer.prompts import PromptReader
from unify_posttrain.trainer.rewards import RewardReader
from unify_posttrain.trainer.step import Step

SHARED = ("reward.reward_model.enable=true", "trainer.critic_warmup=0")
PROMPT, WIDTH, EOS, PAD = 2, 4, 2, 0


class Accelerator:
    """Who holds its memory: the engine, with the weights after a step, or the reward model; verl's managers of both."""

    def __init__(self, scores: list[float]) -> None:
        self.holder: str | None = None
        self.told: list[str] = []
        self.scores = iter(scores)

    def update_weights(self, step: int) -> None:
        assert self.holder is None, f"the engine wakes while {self.holder} holds the memory"
        self.holder = f"engine {step}"
        self.told.append("wake")

    def sleep_replicas(self) -> None:
        assert self.holder is not None and self.holder.startswith("engine"), "the engine is put to sleep twice"
        self.holder = None

    def generate_sequences(self, requests: DataProto) -> DataProto:
        assert self.holder is not None and self.holder.startswith("engine"), "the engine is asked in its sleep"
        self.told.append(f"generate with {self.holder.split()[1]}")
        size = (len(requests), WIDTH)
        tensors = {name: torch.ones(size, dtype=torch.long) for name in ("responses", "response_mask", "prompts")}
        tensors["attention_mask"] = torch.ones(len(requests), 2 * WIDTH, dtype=torch.long)
        return DataProto.from_dict(tensors=tensors, meta_info={"timing": {}})

    def compute_rm_score(self, rows: DataProto) -> DataProto:
        assert self.holder is None, f"the reward model wakes while {self.holder} holds the memory"
        self.told.append(f"score {len(rows)}")
        scores = torch.zeros(rows.batch["responses"].shape)
        scores[:, 0] = torch.tensor([next(self.scores) for _ in range(len(rows))])
        columns = {"raw": np.zeros(len(rows))}
        return DataProto.from_dict(tensors={"rm_scores": scores}, non_tensors=columns, meta_info={"reward_extra_keys": ["raw"]})


class OneAccelerator(FusionTrainer):
    """A trainer from the prompts of a step to its rewards, and validation up to verl's metrics."""

    def __init__(self, config: DictConfig, algorithm: Algorithm, scores: list[float], more: list[dict] | None = None) -> None:
        self.config, self.use_rm, self.fusion = config, True, algorithm.fusion
        self.memory = Accelerator(scores)
        self.async_rollout_manager = self.reward_loop_manager = self.memory
        self.engine = self.checkpoint_manager = Engine(config, self.memory, self.memory)
        reader = DemonstrationReader(lambda text: [5] * len(text), lambda messages: ("1", [1]), EOS, WIDTH)
        self.rewards = RewardReader.from_config(config, self._compute_reward_colocate)
        demonstrator = Demonstrator(reader, self.rewards.score, 1, PROMPT, WIDTH, PAD)
        self.reader = PromptReader(demonstrator if algorithm.experience.needs_target else None, None)
        self.train_dataloader = TrainLoader(more or [])
        self.clock = PhaseClock(algorithm.phases)
        self.metrics, self.timing_raw, self.curr_step_profile = {}, {}, False
        self.tokenizer = SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD, decode=lambda *_, **__: "")
        self.processor = None

    def begin(self, number: int, algorithm: Algorithm, sampling: DynamicSampling | None = None) -> None:
        self.global_steps, self.timing_raw = number, {}
        self.step = Step(number, algorithm, 1, sampling)

    def score_step(self, rows: dict) -> None:
        """`_fit_compute_reward` up to the mixer, which asks for no memory."""
        batch = self._fit_generate(self._fit_get_batch(rows))
        generated = self._scored(batch)
        if self.step.sampling is not None:
            self.step.sampling.replenish(generated, self._more)
            self.engine.sleep_replicas()


def prompts(*uids: str) -> dict:
    rows = len(uids)
    return {
        "dummy": torch.zeros(rows),
        "row_id": np.array([ord(uid) for uid in uids]),
        "raw_prompt": object_column([[{"role": "user", "content": uid}] for uid in uids]),
        "target": object_column(["12"] * rows),
        "data_source": object_column(["sums"] * rows),
    }


@pytest.fixture
def trainer(
    composed: Callable[..., DictConfig], algorithm: Callable[..., Algorithm]
) -> Callable[..., tuple[OneAccelerator, Algorithm]]:
    def build(name: str, scores: list[float], more: list[dict] | None = None) -> tuple[OneAccelerator, Algorithm]:
        flags = (f"algorithm={name}", "actor_rollout_ref.rollout.n=2", *SHARED)
        built = algorithm(*flags)
        return OneAccelerator(composed(*flags), built, scores, more), built

    return build


def test_demonstrations_are_scored_before_the_engine_wakes(trainer: Callable[..., tuple[OneAccelerator, Algorithm]]) -> None:
    it, hpt = trainer("hpt", [1.0] * 20)
    it.engine.update_weights(0)  # what verl does when the run begins
    it.begin(1, hpt)
    it.score_step(prompts("a", "b"))
    it.engine.receive_weights(True, 1, it.timing_raw)
    it.begin(2, hpt)
    it.score_step(prompts("a", "b"))  # their demonstrations are known by now
    first = ["wake", "score 2", "wake", "generate with 0", "score 4"]
    assert it.memory.told == [*first, "wake", "generate with 1", "score 4"]


def test_dynamic_sampling_goes_to_and_fro(trainer: Callable[..., tuple[OneAccelerator, Algorithm]]) -> None:
    scores = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0]  # the first batch has no group whose rewards differ
    it, dapo = trainer("dapo", scores, more=[prompts("c", "d")])
    it.engine.update_weights(6)
    it.begin(7, dapo, DynamicSampling(2, None, 5))
    it.score_step(prompts("a", "b"))
    assert it.memory.told == ["wake", "generate with 6", "score 4", "wake", "generate with 6", "score 4"]
    assert it.memory.holder is None, "the engine has the memory that the update needs"


def test_validation_wakes_the_engine_with_the_steps_weights(
    trainer: Callable[..., tuple[OneAccelerator, Algorithm]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl's own validation puts the engine to sleep for the scores, and wakes it after."""
    it, grpo = trainer("grpo", [1.0] * 8)
    it.begin(3, grpo)
    it.checkpoints = SimpleNamespace(with_line_held_back=lambda step, metrics: metrics)
    it.engine.receive_weights(True, 3, it.timing_raw)
    assert it.memory.holder is None
    rows = {**prompts("a", "b"), "uid": object_column(["a", "b"]), "reward_model": object_column([{}, {}])}
    it.val_dataloader = [rows, rows]
    seen: list[list[float]] = []
    monkeypatch.setattr(FusionTrainer, "_maybe_log_val_generations", lambda *_, **given: None)
    monkeypatch.setattr(FusionTrainer, "_val_metrics_update", lambda self, *a: seen.append(a[2]["reward"]) or {"val": 1.0})
    assert it._validate() == {"val": 1.0} and seen == [[1.0] * 4]
    again = ["generate with 3", "score 2", "wake"]
    assert it.memory.told == ["wake", *again, *again]
    it.begin(4, grpo)
    it.score_step(prompts("a"))
    assert it.memory.told[7:] == ["generate with 3", "score 2"], "it is awake already"


def test_without_a_reward_model_beside_it_the_engine_stays_awake(
    composed: Callable[..., DictConfig], algorithm: Callable[..., Algorithm]
) -> None:
    for flags in ((), ("reward.reward_model.enable=true", "reward.reward_model.enable_resource_pool=true")):
        config = composed("algorithm=hpt", *flags)
        memory = Accelerator([])
        engine = Engine(config, memory, memory)
        engine.receive_weights(True, 1, {})
        engine.give_way()
        assert memory.told == ["wake"] and memory.holder == "engine 1"
