"""Models and checkpoints of strangers in evaluation and export: code, links, pickles, and weights that are no model's."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.strangers import ASKING, changed, poison, split, with_code
from unify_posttrain.evaluation.conduct import conduct
from unify_posttrain.evaluation.exporting import export
from unify_posttrain.runs import state
from unify_posttrain.untrusted.weights import fingerprint

from .test_export import run, sharded, trained_weights, write_checkpoint  # noqa: F401 - run is a fixture

NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize("file", ASKING)
def test_a_model_that_asks_for_code_is_not_evaluated(
    settings: Callable, plain_reward: None, tiny_model: Path, tmp_path: Path, file: str
) -> None:
    marker = with_code(tiny_model, tmp_path / "evil", file)
    with pytest.raises(ValueError, match=rf"model=.*evil: .*{file} asks for Python code .*nothing runs such code here"):
        conduct(settings(f"model={tmp_path / 'evil'}"))
    assert not marker.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_evaluated(
    settings: Callable, plain_reward: None, tiny_model: Path, tmp_path: Path, value: float
) -> None:
    bad = changed(tiny_model, tmp_path / "bad", poison(NORM, value))
    with pytest.raises(ValueError, match=rf"bad: {NORM} holds NaN or infinite numbers in float32"):
        conduct(settings(f"model={bad}"))


def test_numbers_that_the_precision_cannot_hold(settings: Callable, plain_reward: None, tiny_model: Path, tmp_path: Path) -> None:
    large = changed(tiny_model, tmp_path / "large", poison(NORM, 1e6))
    with pytest.raises(ValueError, match=rf"{NORM} holds NaN or infinite numbers in float16"):
        conduct(settings(f"model={large}", "dtype=float16"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), rf"do not fit its config\.json: missing_keys .*: {NORM}"),
        (lambda weights: weights.update(extra=torch.ones(2)), "unexpected_keys .*: extra"),
        (lambda weights: weights.update({NORM: torch.ones(3)}), f"mismatched_keys .*: {NORM}"),
    ],
)
def test_weights_of_another_model_are_not_evaluated(
    settings: Callable, plain_reward: None, tiny_model: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    other = changed(tiny_model, tmp_path / "other", change)
    with pytest.raises(ValueError, match=message):
        conduct(settings(f"model={other}"))


def test_damaged_files_are_named(settings: Callable, plain_reward: None, tiny_model: Path, tmp_path: Path) -> None:
    copy = changed(tiny_model, tmp_path / "copy", lambda weights: None)
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model=.*|copy/model\.safetensors is no complete safetensors file"):
        conduct(settings(f"model={copy}"))
    (copy / "model.safetensors").write_bytes(whole)
    split(copy)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors, which the index of .* is missing"):
        conduct(settings(f"model={copy}"))


def test_pickled_weights_need_a_word(settings: Callable, plain_reward: None, tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    copy = changed(tiny_model, tmp_path / "copy", lambda weights: None)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model=.*copy: the weights of .* are pickled.*allow_pickle=true"):
        conduct(settings(f"model={copy}"))
    results = conduct(settings(f"model={copy}", "allow_pickle=true", "n=1"))
    assert results["models"]


def test_a_benchmark_whose_text_is_none_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from unify_posttrain.evaluation.benchmarks import read_problems

    row = {"prompt": [{"role": "user", "content": "x"}], "reward_model": {"ground_truth": "1"}}
    table = pa.Table.from_pylist([row]).append_column("data_source", pa.array([b"\xff"], pa.binary()).view(pa.string()))
    pq.write_table(table, tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match=r"benchmark file .*odd\.parquet cannot be read as parquet"):
        read_problems([tmp_path / "odd.parquet"])


def test_the_fingerprint_is_of_what_is_read(tiny_model: Path, tmp_path: Path) -> None:
    copy = changed(tiny_model, tmp_path / "copy", lambda weights: None)
    first = fingerprint(copy)
    (copy / "training_args.bin").write_bytes(b"x")  # beside safetensors, nobody reads it
    assert fingerprint(copy) == first
    index = split(copy)
    (copy / "parts").mkdir()
    (copy / "model-00001-of-00002.safetensors").rename(copy / "parts" / "a.safetensors")
    content = json.loads(index.read_text())
    names = {name: file.replace("model-00001-of-00002", "parts/a") for name, file in content["weight_map"].items()}
    index.write_text(json.dumps({**content, "weight_map": names}))
    second = fingerprint(copy)
    path = copy / "parts" / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert len({first, second, fingerprint(copy)}) == 3
    shutil.copy(path, tmp_path / "outside.safetensors")
    index.write_text(json.dumps({**content, "weight_map": {**names, NORM: "../outside.safetensors"}}))
    with pytest.raises(ValueError, match=r"names '\.\./outside\.safetensors', which is outside of"):
        fingerprint(copy)


def test_vllm_is_not_given_weights_that_are_no_numbers(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from unify_posttrain.evaluation.engines import EngineSettings, start_engine

    monkeypatch.setitem(__import__("sys").modules, "vllm", SimpleNamespace(LLM=lambda **_: pytest.fail("vLLM was started")))
    bad = changed(tiny_model, tmp_path / "bad", poison(NORM))
    settings = EngineSettings(name="vllm", dtype="float32", max_context=20, max_batch=4, override_config={}, vllm={})
    with pytest.raises(ValueError, match=rf"holds NaN or infinite numbers, first in {NORM}"):
        start_engine(bad, settings)


# --- export ------------------------------------------------------------------------------------------------------------


def no_export(run: Path, step: int) -> bool:  # noqa: F811
    return not (run / "export" / f"step_{step}").exists() and not list((run / "export").glob("*"))


@pytest.mark.parametrize("file", ASKING)
def test_a_checkpoint_that_asks_for_code_is_not_exported(run: Path, tiny_model: Path, tmp_path: Path, file: str) -> None:  # noqa: F811
    marker = with_code(tiny_model, tmp_path / "evil", file)
    weights = {name: sharded(tensor) for name, tensor in trained_weights(tiny_model).items()}
    write_checkpoint(run, tmp_path / "evil", 7, [weights])
    with pytest.raises(ValueError, match=rf"checkpoint .*global_step_7: .*{file} asks for Python code"):
        export(run, 7)
    assert not marker.exists() and no_export(run, 7)


def test_shards_with_nan_are_not_exported(run: Path, tiny_model: Path) -> None:  # noqa: F811
    weights = trained_weights(tiny_model)
    weights[NORM][0] = math.nan
    write_checkpoint(run, tiny_model, 7, [{name: sharded(tensor) for name, tensor in weights.items()}])
    with pytest.raises(ValueError, match=rf"global_step_7: .* holds NaN or infinite numbers, first in {NORM}"):
        export(run, 7)
    assert no_export(run, 7)


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_shards_that_would_run_something_are_not_read(run: Path, tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    marker = tmp_path / "was-run"
    pickle.loads(pickle.dumps(Evil(marker)))  # it does run
    marker.unlink()
    weights = {name: sharded(tensor) for name, tensor in trained_weights(tiny_model).items()}
    write_checkpoint(run, tiny_model, 7, [{**weights, "evil": Evil(marker)}])
    with pytest.raises(ValueError, match=r"model_world_size_1_rank_0\.pt holds something else than tensors"):
        export(run, 7)
    assert not marker.exists() and no_export(run, 7)


def test_shards_that_are_cut_short_are_named(run: Path, tiny_model: Path) -> None:  # noqa: F811
    folder = write_checkpoint(run, tiny_model, 7, [{"a": torch.ones(10)}])
    path = folder / "actor" / "model_world_size_1_rank_0.pt"
    path.write_bytes(path.read_bytes()[:-100])
    state.mark_complete(folder)
    with pytest.raises(ValueError, match=r"model_world_size_1_rank_0\.pt cannot be read .*choose another step"):
        export(run, 7)


def test_a_list_of_files_that_leads_out_is_no_list(run: Path) -> None:  # noqa: F811
    marker = run / "checkpoints" / "global_step_3" / state.MARKER
    content = json.loads(marker.read_text())
    outside = run / "config.yaml"
    _, (_, crc) = next(iter(content["files"].items()))
    marker.write_text(json.dumps({**content, "files": {**content["files"], "../../config.yaml": [outside.stat().st_size, crc]}}))
    with pytest.raises(ValueError, match=rf"incomplete \(its {state.MARKER} names files outside of it\)"):
        export(run, 3)


def test_links_of_a_checkpoint_are_not_exported(run: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "secret").write_text("private")
    template = run / "checkpoints" / "global_step_3" / "actor" / "huggingface" / "chat_template.jinja"
    template.unlink()
    template.symlink_to(tmp_path / "secret")
    state.mark_complete(run / "checkpoints" / "global_step_3")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is a link to .*secret, outside of"):
        export(run, 3)


def test_full_weights_are_looked_at_and_links_are_not_followed(run: Path, tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    secret = tmp_path / "id_ed25519"
    secret.write_text("private")
    folder = write_checkpoint(run, tiny_model, 7, [])
    described = folder / "actor" / "huggingface"
    shutil.copy(tiny_model / "model.safetensors", described)
    (described / "notes.txt").symlink_to(secret)
    state.mark_complete(folder)
    with pytest.raises(ValueError, match=r"notes\.txt is a link to .*id_ed25519, outside of"):
        export(run, 7)
    (described / "notes.txt").unlink()
    whole = (described / "model.safetensors").read_bytes()
    (described / "model.safetensors").write_bytes(whole[:-8])
    state.mark_complete(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is no complete safetensors file"):
        export(run, 7)
    assert no_export(run, 7)
