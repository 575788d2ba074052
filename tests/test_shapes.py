"""The shapes of the shipped models are those of the public models; a folder on the disk wins over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import conf_dir
from unify_posttrain.shapes import MIB, Shape, bucket_mib, logits_chunk, model_shape

FILES = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
NUMBERS = {"num_hidden_layers": 2, "hidden_size": 1000, "vocab_size": 50_000, "intermediate_size": 3000}
DECLARED = {
    "name": "org/model", "parameters": 99, "layers": 2, "hidden": 1000, "vocabulary": 50_000, "intermediate": 3000, "tied": False,
}  # fmt: skip


def declared(model: str) -> DictConfig:
    return OmegaConf.load(conf_dir() / "model" / f"{model}.yaml").shape


def write_model(folder: Path, description: Mapping[str, Any], size: int | None, sharded: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(description))
    if sharded:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}}))
    elif size is not None:
        with open(folder / "model.safetensors", "wb") as file:
            file.write((2).to_bytes(8, "little") + b"{}")
            file.truncate(10 + size)  # sparse
    return folder


@pytest.mark.parametrize("model", FILES)
def test_parameters_are_those_of_the_model_that_the_shape_describes(model: str) -> None:
    """transformers builds it, on the meta device, where weights take no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    shape = declared(model)
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied,
    }
    if "vision" in shape:
        tower = {
            "depth": shape.vision.layers,
            "hidden_size": shape.vision.hidden,
            "intermediate_size": shape.vision.intermediate,
            "num_heads": shape.vision.heads,
            "out_hidden_size": shape.hidden,
        }
        config = AutoConfig.for_model(
            shape.architecture, text_config=text, vision_config=tower, tie_word_embeddings=shape.tied
        )  # fmt: skip
        kind = AutoModelForImageTextToText
    else:
        config, kind = AutoConfig.for_model(shape.architecture, **text), AutoModelForCausalLM
    with torch.device("meta"):
        built = kind.from_config(config)
    assert sum(each.numel() for each in built.parameters()) == shape.parameters
    largest = max(each.numel() for each in built.parameters())
    assert largest <= model_shape(shape.name, shape).largest  # more only where q, k and v in one matrix would be the largest
    assert largest == model_shape(shape.name, shape).largest or shape.vocabulary < 3 * shape.hidden
    if "vision" in shape:
        assert sum(each.numel() for each in built.model.visual.parameters()) == shape.vision.parameters


@pytest.mark.parametrize("model", FILES)
def test_a_file_describes_the_model_that_it_names(composed: Callable[..., DictConfig], model: str) -> None:
    config = composed(f"model={model}")
    name = Path(config.actor_rollout_ref.model.path).name
    assert Path(config.shape.name).name == name
    if OmegaConf.select(config, "prepare.model") is None:
        assert config.shape.name == config.actor_rollout_ref.model.path
    elsewhere = f"/models/{name}/"  # a folder on the machine that this is planned for
    assert model_shape(elsewhere, config.shape).parameters == config.shape.parameters
    assert model_shape(f"/models/{name}-Instruct", config.shape) is None


@pytest.mark.parametrize(
    ("description", "sharded", "parameters"),
    [
        ({**NUMBERS, "torch_dtype": "bfloat16"}, False, 100_000_000),
        ({**NUMBERS, "dtype": "float32"}, True, 50_000_000),
        ({"text_config": NUMBERS, "torch_dtype": "bfloat16", "hidden_size": 7}, True, 100_000_000),  # the language model's numbers
    ],
)
def test_shape_of_a_folder(tmp_path: Path, description: dict, sharded: bool, parameters: int) -> None:
    folder = write_model(tmp_path / "model", description, 200_000_000, sharded)
    assert model_shape(str(folder)) == Shape(parameters, 2, 1000, 50_000, 3000)


def test_a_folder_wins_over_what_is_declared_for_its_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {**NUMBERS, "vocab_size": 60_000, "dtype": "float32"}, 400)
    assert model_shape(str(folder), DECLARED) == Shape(100, 2, 1000, 60_000, 3000)
    bare = write_model(tmp_path / "bare" / "model", NUMBERS, None)  # no weights: as many as declared, if the rest agrees
    assert model_shape(str(bare), DECLARED) == Shape(99, 2, 1000, 50_000, 3000)
    other = write_model(tmp_path / "other" / "model", {**NUMBERS, "vocab_size": 60_000}, None)
    assert model_shape(str(other), DECLARED) == Shape(None, 2, 1000, 60_000, 3000)


def test_a_hub_id_is_looked_for_in_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model", {**NUMBERS, "torch_dtype": "bfloat16"}, 200)
    cached = {("org/there", "config.json"): str(folder / "config.json")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *asked: cached.get(asked))
    assert model_shape("org/there") == Shape(100, 2, 1000, 50_000, 3000)
    assert model_shape("org/absent") is None
    assert model_shape(str(tmp_path / "nowhere")) is None


def test_what_has_no_shape_is_no_error(tmp_path: Path) -> None:
    assert model_shape(str(tmp_path)) is None
    assert model_shape(str(write_model(tmp_path / "other", {"n_layer": 2, "n_embd": 8, "vocab_size": 9}, 200))) is None
    assert model_shape("no such/model!") is None  # no name of the hub either
    assert (bucket_mib(None, "org/absent", 2048), logits_chunk(None, "org/absent", 2048, 1024)) == (2048, 1024)


@pytest.mark.parametrize(
    ("model", "bucket", "chunk"),
    [
        # 152,064 words x 3584 x 4 bytes = 2079 MiB, in steps of 64; 2 GiB / (3 x 152,064 x 4 bytes) = 1176, in steps of 128
        ("qwen2_5_math_7b", 2112, 1152),
        ("qwen3_8b", 2432, 1152),  # 151,936 x 4096 x 4 = 2374 MiB
        ("qwen2_5_math_1_5b", 2048, 1152),  # 890 MiB
        ("llama3_1_8b", 2048, 1280),  # 128,256 x 4096 x 4 = 2004 MiB; 2 GiB / (3 x 128,256 x 4) = 1395
        ("pythia_1b", 2048, 3456),  # 2 GiB / (3 x 50,304 x 4) = 3557
    ],
)
def test_what_follows_from_a_shape(composed: Callable[..., DictConfig], model: str, bucket: int, chunk: int) -> None:
    config = composed(f"model={model}", "hardware=node_8gpu")
    assert config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes == bucket
    assert bucket * MIB >= model_shape(config.actor_rollout_ref.model.path, config.shape).largest * 4
    assert config.fusion.logits_chunk == config.actor_rollout_ref.actor.fusion.logits_chunk == chunk
    assert composed(f"model={model}").fusion.logits_chunk is None  # on CPU, verl's forward pass
