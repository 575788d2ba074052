"""verl's engine worker with the calls of its FSDP worker, in one process without Ray: what the driver asks of actor and critic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl import DataProto
from verl.utils.config import omega_conf_to_dataclass

from unify_posttrain.backend import seams
from unify_posttrain.config import compose_config
from unify_posttrain.tasks.tokenizer import build_tokenizer

from .actor_kit import BASE, start_group
from .critic_kit import FOLDER_FREE, make_value_batch
from .packed_kit import rows_of_every_kind as rows

pytestmark = pytest.mark.slow  # workers with a model and a tokenizer of their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model as a user gives it: a base model, so that config.json names the language model, with a tokenizer."""
    home, tokenizer = tmp_path_factory.mktemp("model"), build_tokenizer(64)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).float().save_pretrained(home)
    tokenizer.save_pretrained(home)
    return str(home)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variables that verl's worker group sets for a process."""
    start_group()
    ports = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "0", "RAY_LOCAL_WORLD_SIZE": "1"}
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", **ports}.items():
        monkeypatch.setenv(name, value)
    yield


def actor(folder: str, role: str = "actor", *overrides: str) -> Any:
    from unify_posttrain.workers.engine_worker import EngineWorker

    model = f"actor_rollout_ref.model.path={folder}"
    config = compose_config([*BASE, "backend=engine", "actor_rollout_ref.actor.optim.total_training_steps=10", *overrides, model])
    OmegaConf.resolve(config)
    worker = EngineWorker(config.actor_rollout_ref, role=role)
    worker.init_model()
    return worker


def batch(**meta: Any) -> DataProto:
    found = rows()
    found.meta_info["global_token_num"] = found.batch["attention_mask"].sum(dim=-1).tolist()
    found.meta_info.update(meta)
    return found


def weights(worker: Any) -> list[torch.Tensor]:
    return [parameter.full_tensor().clone() for parameter in worker.engine.module.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def both_updates(worker: Any) -> list[dict[str, float]]:
    outputs = worker.update_actor(batch()), worker.update_replay(batch(objective="replay"))
    return [output.meta_info["metrics"] for output in outputs]


def test_a_checkpoint_brings_back_weights_both_optimizers_and_the_schedule(folder: str, tmp_path: Path) -> None:
    relift = ("algorithm=relift", "actor_rollout_ref.actor.optim.lr=1e-2", "fusion.relift.lr=3e-3")
    worker = actor(folder, "actor", *relift, "actor_rollout_ref.actor.optim.lr_warmup_steps=4")
    metrics = [worker.update_actor(batch()).meta_info["metrics"] for _ in range(2)]
    assert [each["actor/lr"] for each in metrics] == [0.0, pytest.approx(1e-2 / 4)] and metrics[1]["actor/grad_norm"] > 0
    replayed = worker.update_replay(batch(objective="replay", term_scales=None)).meta_info["metrics"]
    assert replayed["actor/lr"] == 3e-3, "the rate of the second optimizer"
    assert worker.update_actor(batch()).meta_info["metrics"]["actor/lr"] == pytest.approx(2e-2 / 4), "the schedule stood still"
    worker.save_checkpoint(str(tmp_path / "actor"), None, 1, None)
    kept = weights(worker)
    first = [
        worker.update_actor(batch()).meta_info["metrics"],
        worker.update_replay(batch(objective="replay")).meta_info["metrics"],
    ]
    after = weights(worker)
    assert not same(kept, after)
    again = actor(folder, "actor", *relift, "actor_rollout_ref.actor.optim.lr_warmup_steps=4")
    again.load_checkpoint(str(tmp_path / "actor"))
    assert same(weights(again), kept)
    second = both_updates(again)
    assert same(weights(again), after)
    for one, two in zip(first, second, strict=True):
        keys = [key for key in one if not key.startswith("perf/")]
        assert {key: one[key] for key in keys} == {key: two[key] for key in keys}


def test_a_phase_brings_its_terms_rate_and_fresh_moments(folder: str) -> None:
    worker = actor(folder, "actor", "algorithm=sft_then_rl", "trainer.total_training_steps=10")
    worker.start_phase(0, 5)
    worker.update_actor(batch())
    assert worker.policy.algorithm.name == "sft" and worker.engine.optimizer.state
    worker.start_phase(1, 5)
    assert worker.policy.algorithm.name == "grpo" and not worker.engine.optimizer.state
    assert worker.engine.checkpoint_manager.lr_scheduler is worker.engine.lr_scheduler


def test_log_probs_of_actor_and_reference_are_the_same_before_the_first_step(folder: str) -> None:
    own = actor(folder).compute_log_prob(batch()).batch
    worker = actor(folder, "ref")
    assert worker.ref.engine.optimizer is None and worker.actor is None
    reference = worker.compute_ref_log_prob(batch()).batch["ref_log_prob"]
    torch.testing.assert_close(reference, own["old_log_probs"], rtol=0, atol=1e-6)
    assert bool((own["entropys"].sum(dim=-1) > 0).all())


def test_the_critic_of_a_base_model_has_values_and_a_checkpoint(folder: str, tmp_path: Path) -> None:
    from unify_posttrain.workers.engine_worker import EngineCriticWorker

    config = compose_config(
        [
            *(*FOLDER_FREE, "backend=engine", f"actor_rollout_ref.model.path={folder}", f"critic.model.path={folder}"),
            *("actor_rollout_ref.rollout.n=3", "critic.ppo_mini_batch_size=2"),
            # No warm-up, as this is read by verl's FSDP worker; its engine would read the ratio.
            *("critic.optim.lr_warmup_steps=0", "critic.optim.lr_warmup_steps_ratio=0.5", "critic.optim.total_training_steps=10"),
        ]
    )
    OmegaConf.resolve(config)
    config = seams.adapted(config)

    def critic() -> Any:
        node = omega_conf_to_dataclass(config.critic)
        worker = EngineCriticWorker(_as_the_trainer_hands_it(node))
        worker.init_model()
        return worker

    worker, given = critic(), make_value_batch(12)
    given.meta_info["global_token_num"] = given.batch["attention_mask"].sum(dim=-1).tolist()
    values = worker.compute_values(make_value_batch(12)).batch["values"]
    assert values.shape == given.batch["responses"].shape and float(values.std()) > 0
    assert type(worker.engine.module).__name__.endswith("Qwen2ForTokenClassification")
    step, steps = worker.critic._optimizer_step, []
    worker.critic._optimizer_step = lambda: steps.append(step()) or steps[-1]
    metrics = worker.update_critic(given).meta_info["metrics"]
    assert len(steps) == 2, "12 rows in mini-batches of 2 prompts, which are 2 x 3 rows"
    assert metrics["critic/vf_loss"] > 0 and metrics["critic/grad_norm"] > 0 and metrics["critic/lr"] > 0
    trained = worker.compute_values(make_value_batch(12)).batch["values"]
    worker.save_checkpoint(str(tmp_path / "critic"), None, 1, max_ckpt_to_keep=None)
    again = critic()
    assert torch.equal(again.compute_values(make_value_batch(12)).batch["values"], values), "the head is drawn from the seed"
    again.load_checkpoint(str(tmp_path / "critic"), del_local_after_load=False)
    assert torch.equal(again.compute_values(make_value_batch(12)).batch["values"], trained)


def _as_the_trainer_hands_it(node: Any) -> Any:
    """0.7.1 hands the worker its critic node; 0.9.1 the parts of an engine, with the node beside them (`tell_critic`)."""
    if "legacy" in seams.BACKENDS:
        return node
    from verl.workers.config import TrainingWorkerConfig

    from unify_posttrain.backend.verl09 import CRITIC_SETTINGS

    return TrainingWorkerConfig(
        model_type="value_model",
        model_config=node.model,
        engine_config=node.engine,
        optimizer_config=node.optim,
        checkpoint_config=node.checkpoint,
        extra_context={CRITIC_SETTINGS: node},
    )
