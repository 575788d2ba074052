"""verl's reward workers run the code of any tokenizer folder; ours run it only if the configuration trusts the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import Qwen2Config
from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

from tests.strangers import with_code
from unify_posttrain.tasks.tokenizer import build_tokenizer
from unify_posttrain.workers.reward_loop import FusionRewardWorker
from unify_posttrain.workers.reward_worker import FusionRewardLoopWorker, install


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A tokenizer that needs no code but asks for it, and the trace of that code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(reward_loop, "load_reward_manager", lambda *args, **options: (args, options))
    build_tokenizer(64).save_pretrained(tmp_path / "plain")
    Qwen2Config().save_pretrained(tmp_path / "plain")
    return tmp_path / "evil", with_code(tmp_path / "plain", tmp_path / "evil", "tokenizer_config.json")


def started(worker_class: type, model: Path, trust: bool = False, reward_model: Path | None = None) -> RewardLoopWorker:
    config = {
        "actor_rollout_ref": {"model": {"path": str(model), "trust_remote_code": trust}},
        "reward": {"reward_model": {"enable": reward_model is not None, "model_path": str(reward_model)}},
    }
    return worker_class(OmegaConf.create(config))


def test_verls_worker_runs_the_code(evil: tuple[Path, Path]) -> None:
    """Why there is a worker of ours; when this fails, verl has mended it."""
    started(RewardLoopWorker, evil[0])
    assert evil[1].exists()


def test_ours_does_not(evil: tuple[Path, Path]) -> None:
    theirs = reward_loop.hf_tokenizer
    worker = started(FusionRewardWorker, evil[0])
    assert worker.input_tokenizer.eos_token is not None and not evil[1].exists()
    assert reward_loop.hf_tokenizer is theirs


def test_ours_does_if_it_is_trusted(evil: tuple[Path, Path]) -> None:
    worker = started(FusionRewardWorker, evil[0], trust=True)
    assert type(worker.input_tokenizer).__name__ == "EvilTokenizer" and evil[1].exists()


def test_trust_in_the_policy_is_none_in_the_reward_model(evil: tuple[Path, Path]) -> None:
    worker = started(FusionRewardWorker, evil[0].with_name("plain"), trust=True, reward_model=evil[0])
    assert worker.reward_model_tokenizer is not None and not evil[1].exists()


def test_the_worker_that_scores_is_one_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_loop, "RewardLoopWorker", RewardLoopWorker)  # put back afterwards
    install()
    assert reward_loop.RewardLoopWorker is FusionRewardLoopWorker and issubclass(FusionRewardLoopWorker, FusionRewardWorker)
