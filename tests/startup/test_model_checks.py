"""Model folders of strangers before Ray: code of their own, damaged and pickled weights; nothing is imported on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.strangers import ASKING, changed, poison, split, with_code
from unify_posttrain.config import compose_config
from unify_posttrain.doctoring.looks import Subject, _model
from unify_posttrain.startup.checks import check_config
from unify_posttrain.startup.model_checks import policy_class
from unify_posttrain.startup.tokenizers import load_tokenizer
from unify_posttrain.tasks.arithmetic import write_splits
from unify_posttrain.tasks.tiny_model import build_base_model

ROOT = Path(__file__).resolve().parents[2]
SPLITS = {"easy": {"digits": [1], "train": 32, "test": 4}}
NORM = "model.layers.0.input_layernorm.weight"
TRUSTED = "actor_rollout_ref.model.trust_remote_code=true"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and an untrained model folder."""
    home = tmp_path_factory.mktemp("home")
    model = yaml.safe_load((ROOT / "conf" / "model" / "tiny_qwen2.yaml").read_text())["prepare"]["model"]
    model |= {"layers": 1, "hidden_size": 32, "heads": 1, "kv_heads": 1, "intermediate_size": 32, "folder": None}
    model["pretraining"] |= {"steps": 1, "batch_size": 2, "digits": {1: 1.0}, "careless": {}}
    build_base_model(home / "models" / "tiny_qwen2", model)
    write_splits(home / "data" / "arithmetic", {"name": "arithmetic", "folder": "-", "seed": 0, "splits": SPLITS})
    return home


@pytest.fixture
def model(home: Path) -> Path:
    return home / "models" / "tiny_qwen2"


@pytest.fixture
def compose(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    monkeypatch.setenv("UNIFY_HOME", str(home))

    def build(folder: Path, *overrides: str, key: str = "actor_rollout_ref.model.path"):
        small = ["data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8", f"trainer.run_dir={tmp_path / 'run'}"]
        return compose_config([*small, f"{key}={folder}", *overrides])

    return build


# --- code --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ASKING)
def test_a_folder_that_asks_for_code_is_refused(compose: Callable, model: Path, tmp_path: Path, file: str) -> None:
    marker = with_code(model, tmp_path / "evil", file)
    config = compose(tmp_path / "evil")
    node = r"actor_rollout_ref\.model"
    message = rf"{node}\.path=.*evil: .*{file} asks for Python code .*auto_map.*{node}\.trust_remote_code=true"
    with pytest.raises(ValueError, match=message):
        check_config(config)
    with pytest.raises(ValueError, match=message):  # the same where a name on the hub has just been fetched
        load_tokenizer(config)
    (finding,) = [each for each in _model(Subject(config)) if each.status != "green"]
    assert file in finding.found and "trust_remote_code=true" in finding.remedy
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "trust", "overrides"),
    [
        ("+actor_rollout_ref.model.tokenizer_path", "actor_rollout_ref.model.trust_remote_code", ()),
        ("+actor_rollout_ref.ref.model.path", "actor_rollout_ref.model.trust_remote_code", ()),
        ("critic.model.path", "critic.model.trust_remote_code", ("algorithm=ppo",)),
        ("critic.model.tokenizer_path", "critic.model.trust_remote_code", ("algorithm=ppo",)),
        ("+reward.custom_reward_function.reward_kwargs.model_path", "nothing runs such code", ()),
    ],
)
def test_every_folder_of_the_configuration_is_looked_at(
    compose: Callable, model: Path, tmp_path: Path, key: str, trust: str, overrides: tuple[str, ...]
) -> None:
    marker = with_code(model, tmp_path / "evil", "tokenizer_config.json")
    with pytest.raises(ValueError, match=rf"{key.lstrip('+')}=.*evil: .*{trust}"):
        check_config(compose(tmp_path / "evil", *overrides, key=key))
    assert not marker.exists()


def test_a_trusted_folder_runs_its_code(compose: Callable, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests would not notice otherwise: the folder does run code when it is trusted."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    marker = with_code(model, tmp_path / "evil", "tokenizer_config.json")
    config = compose(tmp_path / "evil", TRUSTED)
    check_config(config)
    assert not marker.exists()  # the tokenizer is not needed yet
    assert type(load_tokenizer(config)).__name__ == "EvilTokenizer" and marker.exists()


def test_the_copy_for_the_driver_follows_the_model(compose: Callable, model: Path) -> None:
    assert compose(model, TRUSTED).data.trust_remote_code is True and compose(model).data.trust_remote_code is False
    with pytest.raises(ValueError, match=r"data\.trust_remote_code=True is a copy of actor_rollout_ref\.model\.trust_remote_code"):
        check_config(compose(model, "data.trust_remote_code=true"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "train +dry_run=true", "doctor", "evaluate", "prepare"])
def test_commands_end_before_anything_is_imported(home: Path, model: Path, tmp_path: Path, command: str) -> None:
    """Real processes, with a folder that asks for code in every one of its files."""
    marker = with_code(model, tmp_path / "evil", "tokenizer_config.json")
    for file in ("config.json", "processor_config.json", "preprocessor_config.json"):
        path = tmp_path / "evil" / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **ASKING[file]}))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "x", "a": "1"}\n')
    name, *given = command.split()
    evil, run = tmp_path / "evil", tmp_path / "run"
    arguments = {
        "evaluate": [
            f"model={evil}",
            f"benchmarks=[{home / 'data' / 'arithmetic' / 'test.parquet'}]",
            "engine=hf",
            "file.reward={path: 'pkg://unify_posttrain.tasks.arithmetic', name: compute_score}",
            f"output={run}",
        ],
        "prepare": [
            "task=convert",
            f"prepare.task.source={rows}",
            "prepare.task.columns.prompt=q",
            "prepare.task.columns.ground_truth=a",
            f"prepare.task.tokenizer={evil}",
        ],
    }.get(name, [f"actor_rollout_ref.model.path={evil}", "data.train_batch_size=16", f"trainer.run_dir={run}"])
    done = subprocess.run(
        [sys.executable, "-m", f"unify_posttrain.{name}", *given, *arguments],
        env={**os.environ, "UNIFY_HOME": str(home), "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "asks for" in done.stdout + done.stderr, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert not marker.exists() and not (tmp_path / "modules").exists()


# --- weights -----------------------------------------------------------------------------------------------------------


def test_whole_weights_pass_in_one_file_and_in_several(compose: Callable, model: Path, tmp_path: Path) -> None:
    copy = changed(model, tmp_path / "copy", lambda weights: None)
    split(copy)
    check_config(compose(copy))
    check_config(compose(copy, "algorithm=ppo"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), rf"missing_keys \(missing, 1\): {NORM}"),
        (lambda weights: weights.update({NORM: torch.ones(3)}), rf"mismatched_keys \(of another shape, 1\): {NORM}"),
        (lambda weights: weights.update({"adapter.weight": torch.ones(3)}), r"unexpected_keys .*: adapter\.weight"),
    ],
)
def test_weights_of_another_model_are_refused(
    compose: Callable, model: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    other = changed(model, tmp_path / "other", change)
    with pytest.raises(ValueError, match=rf"actor_rollout_ref\.model\.path=.*other: the weights .*{message}"):
        check_config(compose(other))


@pytest.mark.parametrize("key", ["critic.model.path", "+actor_rollout_ref.ref.model.path"])
def test_the_other_models_of_a_run_are_looked_at(compose: Callable, model: Path, tmp_path: Path, key: str) -> None:
    other = changed(model, tmp_path / "other", lambda weights: weights.pop(NORM))
    with pytest.raises(ValueError, match=rf"{key.lstrip('+')}=.*{NORM}"):
        check_config(compose(other, "algorithm=ppo", key=key))


def test_damaged_files_are_named(compose: Callable, model: Path, tmp_path: Path) -> None:
    copy = changed(model, tmp_path / "copy", lambda weights: None)
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is no complete safetensors file"):
        check_config(compose(copy))
    assert [each.status for each in _model(Subject(compose(copy)))] == ["red"]
    (copy / "model.safetensors").write_bytes(whole)
    index = split(copy)
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "weight_map": {**content["weight_map"], NORM: "../model.safetensors"}}))
    with pytest.raises(ValueError, match=r"names '\.\./model\.safetensors', which is outside of"):
        check_config(compose(copy))
    assert [each.status for each in _model(Subject(compose(copy)))] == ["red"]
    index.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json cannot be read"):
        check_config(compose(copy))


def test_a_folder_without_weights_is_good_for_a_plan_alone(compose: Callable, model: Path, tmp_path: Path) -> None:
    copy = changed(model, tmp_path / "copy", lambda weights: None)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"actor_rollout_ref\.model\.path=.*copy: the folder holds no weights"):
        check_config(compose(copy))
    check_config(compose(copy, "+dry_run=true"))


def test_pickled_weights_need_a_word(compose: Callable, model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    copy = changed(model, tmp_path / "copy", lambda weights: None)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"are pickled \(pytorch_model\.bin\).*set allow_pickle=true"):
        check_config(compose(copy))
    check_config(compose(copy, "allow_pickle=true"))


def test_numbers_are_left_to_the_workers(compose: Callable, model: Path, tmp_path: Path) -> None:
    """Reading all weights takes minutes for a large model, and the workers do so anyway (tests/workers/test_finite.py)."""
    check_config(compose(changed(model, tmp_path / "nan", poison(NORM))))


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{"], ids=range(3))
def test_a_description_that_is_none(compose: Callable, model: Path, tmp_path: Path, text: str) -> None:
    copy = changed(model, tmp_path / "copy", lambda weights: None)
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        check_config(compose(copy))


def test_the_class_is_the_one_that_verl_loads() -> None:
    from transformers import AutoModelForCausalLM, Qwen2_5_VLConfig, Qwen2Config

    assert policy_class(Qwen2Config()) is AutoModelForCausalLM
    assert policy_class(Qwen2_5_VLConfig()) is not AutoModelForCausalLM
