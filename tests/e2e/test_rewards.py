"""Rewards through the real command: a classifier served beside the trainer on raw text, and the length penalty."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
from pathlib import Path
from statistics import fmean

import pytest
import ray

from tests.rewards.tiny_classifier import build_classifier
from unify_posttrain.rewards.classifier import ClassifierSettings, RewardClassifier
from unify_posttrain.workers.reward_classifier import _server, compute_score

from .conftest import World

pytestmark = pytest.mark.e2e

FRESH = ("trainer.resume_mode=disable",)
OPTIONS = {"template": "{prompt}{response}{eos}", "scale": 1.0, "shift": 0.0, "sigmoid": False}
ROW = {"prompt_text": "1+1=", "eos_text": "", "row_id": 0}


def dumped(file: Path) -> list[dict]:
    """Rows of one step, as trainer.rollout_data_dir receives them."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def settings(folder: Path) -> ClassifierSettings:
    return ClassifierSettings(str(folder), 128, 8, 0.02, "float32", "cpu")


def test_classifier_judges_raw_text(world: World, tmp_path: Path) -> None:
    folder = build_classifier(tmp_path / "classifier")
    world.train(
        "classifier", "algorithm=online_sft", "task=tldr", "trainer.total_training_steps=2", *FRESH,
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        f"data.train_files={world.home}/data/arithmetic/train.parquet",
        f"data.val_files={world.home}/data/arithmetic/test.parquet",
        f"reward.reward_model.model_path={folder}",
        "reward.custom_reward_function.reward_kwargs.max_length=128",
        "reward.custom_reward_function.reward_kwargs.scale=2",
        "reward.custom_reward_function.reward_kwargs.sigmoid=true",
        "reward.num_workers=2", "trainer.test_freq=2", f"trainer.rollout_data_dir={tmp_path}/rollouts",
    )  # fmt: skip
    rows = [row for step in (1, 2) for row in dumped(tmp_path / "rollouts" / f"{step}.jsonl")]
    assert len(rows) == 2 * 8 * 4
    assert all("<|user|>" not in row["input"] and row["input"].endswith("=") for row in rows), "no chat template"
    # The world's model answers in chat format only, so raw prompts give it trouble: some responses end, some are cut off.
    classifier = RewardClassifier(settings(folder))
    cut, ended = ([row["input"] + row["output"] + end for row in rows] for end in ("", "<|end|>"))
    for row, *logits in zip(rows, classifier.logits(cut), classifier.logits(ended), strict=True):
        assert any(row["raw_reward"] == pytest.approx(logit, abs=1e-4) for logit in logits)
        assert row["score"] == pytest.approx(1 / (1 + math.exp(-2 * row["raw_reward"])), abs=1e-5)  # sigmoid(2x + 0)
    metrics = world.metrics("classifier")
    assert metrics[1]["fusion/kl_seq"] == pytest.approx(0, abs=1e-4) and abs(metrics[2]["fusion/kl_seq"]) > 1e-4
    assert metrics[1]["critic/score/max"] > metrics[1]["critic/score/min"] and metrics[1]["actor/grad_norm"] > 0
    assert "val-aux/arithmetic_hard/raw_reward/mean@1" in metrics[2]


def test_length_penalty_of_rollouts_and_demonstrations(world: World, tmp_path: Path) -> None:
    """Responses of up to 40 tokens, buffer 30: everything over 10 tokens pays (len - 10) / 30, demonstrations too."""
    world.train(
        "overlong", "algorithm=hpt", "trainer.switch_gate=1", "trainer.total_training_steps=2", *FRESH,
        "reward.reward_manager.name=dapo", "fusion.success_key=score", f"trainer.rollout_data_dir={tmp_path}/rollouts",
        "+reward.reward_kwargs.max_resp_len=40",
        "+reward.reward_kwargs.overlong_buffer_cfg={enable:true,len:30,penalty_factor:1.0,log:true}",
    )  # fmt: skip
    metrics, demonstrations = world.metrics("overlong"), 0
    for step, entry in metrics.items():
        paid: dict[str, list[float]] = {"rollout": [], "demonstration": []}
        for row in dumped(tmp_path / "rollouts" / f"{step}.jsonl"):
            if row["row_kind"] in ("padding", "dropped"):
                continue
            # One character is a token; <|end|>, which is not shown, is one more unless the response was cut off at 40.
            penalty = min(-(min(len(row["output"]) + 1, 40) - 10) / 30, 0)
            assert row["overlong_reward"] == pytest.approx(penalty, abs=1e-6) and row["overlong"] is (penalty < 0)
            assert row["score"] == row["acc"], "the reward function's own score, which the gate asks here"
            paid[row["row_kind"]].append(row["score"] + penalty)
        assert all(reward < 1 for reward in paid["demonstration"]), "worked solutions have about 28 tokens"
        assert entry["critic/score/mean"] == pytest.approx(fmean(paid["rollout"] + paid["demonstration"]), abs=1e-5)
        if paid["demonstration"]:
            assert entry["fusion/demo_score"] == pytest.approx(fmean(paid["demonstration"]), abs=1e-5)
            demonstrations += len(paid["demonstration"])
    assert demonstrations


@pytest.fixture(scope="module")
def local_ray():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Caller:
    """Stands in for a reward worker: a process of its own."""

    async def ask(self, options: dict, answers: list[str]) -> list[dict]:
        return await asyncio.gather(*(compute_score("tldr", answer, "", ROW, **options) for answer in answers))

    def server(self, settings: ClassifierSettings) -> str:
        return _server(settings, ray.get_runtime_context().get_job_id())._actor_id.hex()


def test_workers_share_one_server_and_hear_of_its_death(local_ray, tmp_path: Path) -> None:
    chosen = settings(build_classifier(tmp_path))
    options = {**vars(chosen), **OPTIONS}
    callers = [Caller.remote() for _ in range(2)]
    answers = [str(number) for number in range(20)]
    first, second = ray.get([caller.ask.remote(options, answers) for caller in callers])
    expected = RewardClassifier(chosen).logits([f"1+1={answer}" for answer in answers])
    for results in (first, second):
        assert [result["raw_reward"] for result in results] == pytest.approx(expected, abs=1e-5)
    assert len({ray.get(caller.server.remote(chosen)) for caller in callers}) == 1
    job = ray.get_runtime_context().get_job_id()
    process = ray.get(_server(chosen, job).__ray_call__.remote(lambda server: os.getpid()))
    os.kill(process, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="did not start, died, or failed on a text"):
        ray.get(callers[0].ask.remote(options, ["3"]))


def test_server_that_cannot_start_says_why(local_ray, tmp_path: Path) -> None:
    options = {**vars(settings(build_classifier(tmp_path, head=False))), **OPTIONS}
    with pytest.raises(RuntimeError, match=r"did not start(.|\n)*not a trained classifier"):
        asyncio.run(compute_score("tldr", "2", "", ROW, **options))
