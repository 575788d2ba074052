"""The estimate of a rank's memory, against arithmetic by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from unify_posttrain.startup import memory
from unify_posttrain.startup.memory import ModelSize, memory_of_a_rank, model_size

NUMBERS = {"num_hidden_layers": 2, "hidden_size": 1000, "vocab_size": 50_000}
ROWS = ("data.max_prompt_length=100", "data.max_response_length=900", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4")
Estimate = Callable[..., str]


def write_model(folder: Path, description: dict, size: int, sharded: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(description))
    if sharded:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}}))
    else:
        with open(folder / "model.safetensors", "wb") as file:
            file.truncate(size)  # sparse
    return folder


@pytest.mark.parametrize(
    ("description", "sharded", "parameters"),
    [
        ({**NUMBERS, "torch_dtype": "bfloat16"}, False, 100e6),
        ({**NUMBERS, "dtype": "float32"}, True, 50e6),
        ({"text_config": NUMBERS, "torch_dtype": "bfloat16", "hidden_size": 7}, True, 100e6),  # the language model's numbers
    ],
)
def test_size_of_a_model(tmp_path: Path, description: dict, sharded: bool, parameters: float) -> None:
    folder = write_model(tmp_path / "model", description, 200_000_000, sharded)
    assert model_size(str(folder)) == ModelSize(parameters, 2, 1000, 50_000)


def test_a_hub_id_is_looked_for_in_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model", {**NUMBERS, "torch_dtype": "bfloat16"}, 200)
    cached = {("org/there", "config.json"): str(folder / "config.json")}
    monkeypatch.setattr(memory, "try_to_load_from_cache", lambda *asked: cached.get(asked))
    assert model_size("org/there") == ModelSize(100, 2, 1000, 50_000)
    assert model_size("org/absent") is None
    assert model_size(str(tmp_path / "nowhere")) is None


def test_what_has_no_size_is_no_error(tmp_path: Path) -> None:
    assert model_size(str(tmp_path)) is None  # no weights
    assert model_size(str(write_model(tmp_path / "other", {"n_layer": 2, "n_embd": 8, "vocab_size": 9}, 200))) is None
    assert model_size("no such/model!") is None  # no name of the hub either


@pytest.fixture
def estimate(tmp_path: Path, composed: Callable[..., DictConfig]) -> Estimate:
    folder = write_model(tmp_path / "model", {**NUMBERS, "torch_dtype": "bfloat16"}, 2_000_000_000, sharded=True)  # 1e9 parameters

    def line(*overrides: str) -> str:
        return memory_of_a_rank(composed("algorithm=hpt", f"actor_rollout_ref.model.path={folder}", *ROWS, *overrides))

    return line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # float32, one rank: 1e9 x 16; 2 x 4 rows x 1000 tokens x 50,000 words x 4 bytes = 1.6e9; no checkpointing
        (("hardware=cpu",), "17.6 GB per rank in the update: 16 GB of weights, gradients and moments, 1.6 GB of logits of 4000"),
        (("hardware=cpu", "trainer.n_gpus_per_node=2"), "at least 9.6 GB per rank in the update: 8 GB of"),
        # 2 x 500 x 50,000 x 4 = 0.2e9
        (("hardware=cpu", "fusion.logits_chunk=500"), "0.2 GB of logits of 4000 tokens"),
        # 2 layers x 4000 x 1000 x 4 = 0.032e9
        (("hardware=cpu", "actor_rollout_ref.model.enable_gradient_checkpointing=true"), "0.032 GB of inputs of layers"),
        # bfloat16, eight ranks: 16e9 / 8; tokens of a dynamic batch 2 x 3000 x 50,000 x 2 = 0.6e9; 2 x 3000 x 1000 x 2 = 0.012e9
        (
            ("hardware=node_8gpu", "actor_rollout_ref.actor.use_dynamic_bsz=true",
             "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=3000"),
            "at least 2.61 GB per rank in the update: 2 GB of weights, gradients and moments, 0.6 GB of logits of 3000 tokens, "
            "0.012 GB of inputs of layers; generating, the engine takes 70% of the GPU",
        ),
        (("hardware=gpu_1", "actor_rollout_ref.model.lora_rank=8"), "4 GB of weights (adapters not counted)"),
        # the tokens of a row are shared by two ranks: 2 x 2000 x 50,000 x 2
        (("hardware=node_8gpu", "actor_rollout_ref.actor.use_dynamic_bsz=false",
          "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"), "0.4 GB of logits of 2000 tokens"),
    ],
)  # fmt: skip
def test_memory_of_a_rank(estimate: Estimate, overrides: tuple[str, ...], expected: str) -> None:
    assert expected in estimate(*overrides)


def test_nothing_is_estimated_from_nothing(estimate: Estimate) -> None:
    assert "not on this disk" in estimate("actor_rollout_ref.model.path=nobody/nothing")
