"""What two folders must be before anything is computed: every guard names the folder, and what to do."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.analysis.conftest import low_rank, save_model
from unify_posttrain.analysis.weights.pairs import Pair, Selection, layer_of, module_of, open_pair, parse_layers
from unify_posttrain.analyze import CONFIG
from unify_posttrain.config import compose_config

DEFAULT = Selection(str(compose_config(config_name=CONFIG).modules), None)
WEIGHTS = "model.safetensors"
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture()
def copies(models: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The two models, to be changed."""
    return tuple(shutil.copytree(folder, tmp_path / folder.name) for folder in models)  # type: ignore[return-value]


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def describe(folder: Path, **changed: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


# What is compared


def test_projections_of_all_layers_by_default(models: tuple[Path, Path]) -> None:
    pair = open_pair(*models, DEFAULT)
    assert len(pair.names) == 14 and all("_proj.weight" in name for name in pair.names)
    assert [layer_of(name) for name in pair.names] == [0] * 7 + [1] * 7
    assert "model.embed_tokens.weight" in pair.rest and set(pair.rest) | set(pair.names) == set(pair.tuned.shapes)
    base, tuned = pair.read(Q0)
    assert pair.shape(Q0) == tuple(base.shape) == tuple(tuned.shape) and (base.dtype, tuned.dtype) == (
        torch.float32,
        torch.bfloat16,
    )


def test_both_families(tmp_path: Path) -> None:
    pair = open_pair(save_model(tmp_path / "a", llama=True), save_model(tmp_path / "b", low_rank, llama=True), DEFAULT)
    assert len(pair.names) == 14 and "lm_head.weight" in pair.rest


@pytest.mark.parametrize(
    ("modules", "layers", "count"),
    [("q_proj", None, 2), (DEFAULT.modules, {1}, 7), (r"embed_tokens\.weight$", None, 1), ("mlp", {0}, 3)],
)
def test_parts_of_a_model(models: tuple[Path, Path], modules: str, layers: set[int] | None, count: int) -> None:
    assert len(open_pair(*models, Selection(modules, None if layers is None else frozenset(layers))).names) == count


def test_names_of_layers_and_modules() -> None:
    assert layer_of("transformer.h.3.attn.c_attn.weight") == 3 and layer_of("model.norm.weight") is None
    assert module_of("gpt_neox.layers.10.attention.dense.weight") == "attention.dense"
    assert module_of("model.embed_tokens.weight") == "model.embed_tokens"


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), (3, {3}), ("0-2,5", {0, 1, 2, 5}), (["0-1", 4], {0, 1, 4}), ("7", {7})]
)
def test_layers(value: object, expected: set[int] | None) -> None:
    assert parse_layers(value) == expected


@pytest.mark.parametrize("value", ["a", "3-1", "1,", "-1", "0-9999999999", 1.5])
def test_layers_that_are_none(value: object) -> None:
    with pytest.raises(ValueError, match=r"layers=.* give for example layers=0-9,12"):
        parse_layers(value)


def test_what_is_no_matrix_is_counted(copies: tuple[Path, Path]) -> None:
    for folder in copies:
        edit(folder, lambda tensors: tensors.update({"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 3, 4)}))
    pair = open_pair(*copies, DEFAULT)
    assert len(pair.names) == 14 and pair.skipped["experts in one tensor of three dimensions"] == 1
    assert open_pair(*copies, Selection("layers.0", None)).skipped["vectors and others without rows and columns"] > 0


def test_a_tied_head_counts_once_whoever_stores_it(copies: tuple[Path, Path]) -> None:
    edit(copies[1], lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    pair = open_pair(*copies, Selection("embed_tokens|lm_head", None))
    assert pair.names == ("model.embed_tokens.weight",) and "lm_head.weight" not in pair.rest
    describe(copies[1], tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"1 only in the tuned model \(lm_head.weight\)"):
        open_pair(*copies, DEFAULT)


def test_shards_are_read_by_their_index(copies: tuple[Path, Path]) -> None:
    tensors = load_file(copies[1] / WEIGHTS)
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, copies[1] / file, metadata={"format": "pt"})
    (copies[1] / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (copies[1] / "model.safetensors.index.json").write_text(json.dumps(index))
    pair = open_pair(*copies, DEFAULT)
    assert torch.equal(pair.read(Q0)[1], tensors[Q0])
    (copies[1] / "model.safetensors.index.json").unlink()
    shutil.copy(copies[1] / "a.safetensors", copies[1] / "c.safetensors")
    with pytest.raises(ValueError, match=r"stands in a\.safetensors and in c\.safetensors"):
        open_pair(*copies, DEFAULT)


# Guards


def refused(copies: tuple[Path, Path], message: str, selection: Selection = DEFAULT) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_pair(*copies, selection)
    assert "\n" not in str(caught.value)


def test_names_and_shapes_that_differ_are_listed_and_counted(copies: tuple[Path, Path]) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.extra.weight"] = torch.zeros(2, 2)
        tensors["model.norm.weight"] = torch.zeros(17)
        for layer in (0, 1):
            del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]

    edit(copies[1], change)
    refused(
        copies,
        r"2 only in the base \(model.layers.0.mlp.up_proj.weight, .*1 only in the tuned model \(model.extra.weight\); 1 of "
        r"other shapes \(model.norm.weight 16 and 17\); give two models of one architecture",
    )


@pytest.mark.parametrize("name", [Q0, "model.norm.weight"])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_are_none(copies: tuple[Path, Path], which: int, name: str) -> None:
    edit(copies[which], lambda tensors: tensors[name].view(-1)[3:4].fill_(float("nan")))
    refused(copies, f"{copies[which].name}: .*NaN or infinite numbers, first in {re.escape(name)}")


def test_adapters(copies: tuple[Path, Path]) -> None:
    (copies[1] / "adapter_config.json").write_text("{}")
    refused(copies, r"holds a LoRA adapter; merge it")
    (copies[1] / "adapter_config.json").unlink()
    edit(copies[1], lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 16)}))
    refused(copies, r"weights of a LoRA adapter \(model.layers.0.self_attn.q_proj.lora_A.weight\); merge it")


def test_quantised_weights(copies: tuple[Path, Path]) -> None:
    edit(copies[0], lambda tensors: tensors.update({Q0: torch.zeros(16, 16, dtype=torch.int8)}))
    refused(copies, rf"base=.*1 selected matrices are quantised \(first {re.escape(Q0)}, I8\)")
    describe(copies[0], quantization_config={"quant_method": "awq"})
    refused(copies, r"quantised \(quantization_config in config.json\); give a folder with weights in float32")


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection("nothing", None), r"modules='nothing' select none of the \d+ tensors, such as .*; give another modules=REGEX"),
        (Selection("q_proj", frozenset({7})), r"modules='q_proj' and layers=7 select none"),
        (Selection("norm", None), "select only tensors that are no matrices"),
    ],
)
def test_nothing_selected(models: tuple[Path, Path], selection: Selection, message: str) -> None:
    refused(models, message, selection)


def test_folders_that_are_no_models(models: tuple[Path, Path], tmp_path: Path) -> None:
    refused((models[0], tmp_path / "none"), r"tuned=.*none is no folder; give a model's folder")
    refused((tmp_path, models[1]), r"base=.* holds no config\.json")
    shutil.copy(models[0] / "config.json", tmp_path)
    refused((tmp_path, models[1]), r"holds no \*\.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    refused((tmp_path, models[1]), r"pickled \(pytorch_model.bin\); give a safetensors version")


def test_folders_with_code_or_damaged_files(copies: tuple[Path, Path]) -> None:
    describe(copies[1], auto_map={"AutoModel": "mine.Model"})
    refused(copies, "asks for Python code")
    describe(copies[1], auto_map={})
    content = (copies[1] / WEIGHTS).read_bytes()
    (copies[1] / WEIGHTS).write_bytes(content[:-10])
    refused(copies, "no complete safetensors file")


def test_a_plan_reads_no_numbers(copies: tuple[Path, Path]) -> None:
    edit(copies[0], lambda tensors: tensors[Q0].view(-1)[:1].fill_(float("inf")))
    assert isinstance(open_pair(*copies, DEFAULT, finite=False), Pair)
