"""Weights that are cut short, missing, elsewhere, pickled, or no numbers, as real files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.strangers import changed, poison, split
from unify_posttrain.untrusted.loading import check_fits
from unify_posttrain.untrusted.weights import check_files, check_finite, first_not_finite, header, weight_files

SHARD = "model-00001-of-00002.safetensors"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "whole"
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return changed(whole, tmp_path / "model", lambda weights: None)


@pytest.fixture
def sharded(folder: Path) -> Path:
    split(folder)
    return folder


def fits(folder: Path, model_class: type = AutoModelForCausalLM, body_only: bool = False) -> None:
    check_fits(folder, check_files(folder, "k", allow_pickle=False), model_class, "k", body_only=body_only)


def test_whole_folders_pass(folder: Path) -> None:
    shapes = check_files(folder, "k", allow_pickle=False)
    assert shapes[NORM] == (8,) and "lm_head.weight" not in shapes  # tied
    check_finite(folder, "k")
    fits(folder)
    split(folder)
    assert check_files(folder, "k", allow_pickle=False) == shapes
    assert [path.name for path in weight_files(folder).files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    fits(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_cut_short(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is no complete safetensors file .*get it again"):
        check_files(folder, "k", allow_pickle=False)


def test_longer_than_its_header_says(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        header(folder / "model.safetensors")


def index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names.update({NORM: "../other.safetensors"}), r"index\.json names '\.\./other\.safetensors', which is out"),
        (lambda names: names.update({NORM: "/elsewhere/other.safetensors"}), "which is outside of"),
        (lambda names: names.update({NORM: "https://x.org/a.safetensors"}), "which is outside of"),
        (lambda names: names.update({NORM: "gone.safetensors"}), r"gone\.safetensors, which the index .* is missing \(1 of 3"),
        (lambda names: names.update({"no.such": SHARD}), r"00001-of-00002\.safetensors does not hold no\.such"),
        (lambda names: names.update({NORM: 3}), "has no weight_map of tensors to files"),
        (lambda names: names.clear(), "has no weight_map of tensors to files"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit(sharded: Path, change: Callable, message: str) -> None:
    index(sharded, change)
    with pytest.raises(ValueError, match=message):
        check_files(sharded, "k", allow_pickle=False)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"metadata": {}, "weight_map": []}', '{"weight_map": {"a": "b"}}', "[" * 100_000], ids=range(5)
)
def test_an_index_that_is_none(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json .*get the file again"):
        weight_files(sharded)


def test_linked_weights_are_read_and_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with caplog.at_level(logging.WARNING):
        check_files(folder, "k", allow_pickle=False)
    assert len(caplog.messages) == 1 and "elsewhere.safetensors, outside of the folder" in caplog.messages[0]


def test_pickled_weights_need_a_word(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    assert not weight_files(folder).pickled  # safetensors are preferred, as by transformers and vLLM
    (folder / "model.safetensors").unlink()
    assert [path.name for path in weight_files(folder).files] == ["pytorch_model.bin"]
    with pytest.raises(ValueError, match=r"k: the weights of .* are pickled \(pytorch_model\.bin\).*allow_pickle=true"):
        check_files(folder, "k", allow_pickle=False)
    assert check_files(folder, "k", allow_pickle=True) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
def test_the_first_tensor_that_is_no_number_is_named(dtype: torch.dtype, value: float) -> None:
    good, bad = torch.arange(-4.0, 4.0).reshape(2, 4), torch.tensor([1.0, value])
    tensors = {"a": good.to(dtype), "empty": torch.ones(0, dtype=dtype), "number": torch.tensor([2**40]), "b": bad.to(dtype)}
    assert first_not_finite([*tensors.items(), ("c", bad)]) == "b"
    assert first_not_finite(list(tensors.items())[:-1]) is None


def test_the_largest_numbers_are_numbers() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        extremes = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype)
        assert first_not_finite([("a", extremes)]) is None


def test_a_file_with_nan_is_named(whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "nan", poison(NORM))
    with pytest.raises(
        ValueError, match=rf"k: .*model\.safetensors holds NaN or infinite numbers, first in {NORM}; take an earlier"
    ):
        check_finite(folder, "k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), rf"missing_keys \(missing, 1\): {NORM}"),
        (lambda weights: weights.update(extra=torch.ones(2)), r"unexpected_keys \(unknown to the model, 1\): extra"),
        (lambda weights: weights.update({NORM: torch.ones(9)}), rf"mismatched_keys \(of another shape, 1\): {NORM}"),
    ],
)
def test_weights_of_another_model(whole: Path, tmp_path: Path, change: Callable, message: str) -> None:
    folder = changed(whole, tmp_path / "other", change)
    check_files(folder, "k", allow_pickle=False)  # whole files
    with pytest.raises(ValueError, match=message):
        fits(folder)


def test_an_untied_head_must_be_there(whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "untied", lambda weights: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ValueError, match=r"missing_keys.*lm_head\.weight"):
        fits(folder)


def test_a_model_with_a_new_head_needs_its_body(whole: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification as ValueModel

    fits(whole, ValueModel, body_only=True)
    headed = changed(whole, tmp_path / "head", lambda weights: weights.update({"lm_head.weight": torch.ones(16, 8)}))
    fits(headed, ValueModel, body_only=True)
    with pytest.raises(ValueError, match=NORM):
        fits(changed(whole, tmp_path / "gap", lambda weights: weights.pop(NORM)), ValueModel, body_only=True)


def test_several_files_without_an_index_are_all_read(folder: Path) -> None:
    save_file({"more": torch.ones(1)}, folder / "other.safetensors")
    assert [path.name for path in weight_files(folder).files] == ["model.safetensors", "other.safetensors"]
    (folder / "other.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(ValueError, match=r"other\.safetensors is no complete"):
        check_files(folder, "k", allow_pickle=False)
