"""What a dry run says about files that are not there: written by which command, or mistyped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig

from unify_posttrain.config import compose_config
from unify_posttrain.startup import data_checks
from unify_posttrain.startup.checks import check_config
from unify_posttrain.startup.data_checks import check_data_if_there
from unify_posttrain.startup.dry_run import describe_run
from unify_posttrain.startup.inputs import Missing, downloads, missing_files, missing_model

MATH = ["algorithm=hpt", "model=qwen2_5_math_7b", "task=openr1_math", "hardware=node_8gpu"]
PREPARE = "python -m unify_posttrain.prepare task="


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    return tmp_path


def compose(*overrides: str) -> DictConfig:
    return compose_config([*MATH, *overrides])


def commands(config: DictConfig) -> list[str]:
    return [each.command for each in missing_files(config)]


def test_files_of_the_task_and_the_call_that_writes_them(home: Path) -> None:
    folder = home / "data" / "openr1_math"
    train = Missing(f"data.train_files: {folder}/train.parquet", f"{PREPARE}openr1_math")
    validation = Missing(f"data.val_files: {folder}/validation.parquet", f"{PREPARE}openr1_math")
    assert missing_files(compose()) == [train, validation]
    folder.mkdir(parents=True)
    (folder / "train.parquet").touch()
    assert missing_files(compose()) == [validation]


def test_files_of_other_tasks_are_known_too(home: Path) -> None:
    benchmarks = home / "data" / "benchmarks"
    config = compose(f"data.val_files=[{benchmarks}/aime24.parquet,{benchmarks}/arc_c.parquet,{home}/data/tldr/train.parquet]")
    assert commands(config)[1:] == [f"{PREPARE}benchmarks", f"{PREPARE}benchmarks", f"{PREPARE}tldr"]


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere/train.parquet",
        "{home}/data/openr1_math/trian.parquet",
        "{home}/data/openr1_maths/train.parquet",
        "{home}/data/dapo_math/test.parquet",  # the generated tasks have one, this has validation.parquet
        "{home}/data/benchmarks/aime26.parquet",
        "{home}/data/converted/validation.parquet",  # written only if rows are held out, and not this run's task
    ],
)
@pytest.mark.parametrize("dry", [[], ["+dry_run=true"]])
def test_what_nothing_writes_is_a_mistake_in_a_dry_run_too(home: Path, path: str, dry: list[str]) -> None:
    file = path.format(home=home)
    with pytest.raises(ValueError, match=r"data\.val_files: .* does not exist; check the path"):
        missing_files(compose(f"data.val_files={file}", *dry))


def test_a_folder_of_ones_own_is_this_runs(home: Path) -> None:
    folder = home / "mine"
    config = compose(f"prepare.task.folder={folder}")
    assert [each.what for each in missing_files(config)] == [
        f"data.train_files: {folder}/train.parquet",
        f"data.val_files: {folder}/validation.parquet",
    ]
    with pytest.raises(ValueError, match="check the path"):
        missing_files(compose(f"data.train_files={folder}/train.parquet"))


def test_a_run_refuses_and_a_dry_run_goes_on(home: Path) -> None:
    with pytest.raises(ValueError, match=rf"train\.parquet does not exist; write it with: {PREPARE}arithmetic model=tiny_qwen2$"):
        config = compose_config(["algorithm=grpo"])
        (home / "models" / "tiny_qwen2").mkdir(parents=True)
        (home / "models" / "tiny_qwen2" / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
        check_config(config)
    check_config(compose_config(["algorithm=grpo", "+dry_run=true"]))


def test_a_base_model_that_is_built_on_the_spot(home: Path) -> None:
    build = f"{PREPARE}countdown model=tiny_qwen2_countdown"
    choices = ["algorithm=grpo", "task=countdown", "model=tiny_qwen2_countdown"]
    with pytest.raises(ValueError, match=rf"does not exist; build it with: {build}$"):
        check_config(compose_config(choices))
    config = compose_config([*choices, "+dry_run=true"])
    check_config(config)
    assert missing_model(config) == [Missing(f"actor_rollout_ref.model.path: {home}/models/tiny_qwen2_countdown", build)]
    assert set(commands(config)) == {build}  # one call for data and model


def test_the_plan_without_data(home: Path) -> None:
    config = compose("+dry_run=true", "algorithm.adv_estimator=grpo")
    check_config(config)
    text = describe_run(config, *check_data_if_there(config))
    lines = text.splitlines()
    assert "data         not read, see below" in lines
    assert "steps        500, validation every 25, checkpoint every 50" in lines
    start = lines.index(f"missing      data.train_files: {home}/data/openr1_math/train.parquet")
    assert lines[start + 1 : start + 3] == [
        f"             data.val_files: {home}/data/openr1_math/validation.parquet",
        f"               write it by: {PREPARE}openr1_math",
    ]
    assert lines[-1] == "checks       passed, those of the data wait for it; nothing was started"
    epochs = compose_config([*MATH[1:], "algorithm=sft", "+dry_run=true"])
    assert "steps        3 epochs of the data," in describe_run(epochs, *check_data_if_there(epochs))


def test_a_checkpoint_does_not_ask_for_data_in_a_dry_run(home: Path) -> None:
    """Its identity has the fingerprint of the data."""
    folder = home / "runs" / "hpt" / "checkpoints" / "global_step_3"
    folder.mkdir(parents=True)
    (folder / "unify_complete.json").write_text(json.dumps({"format": 1, "files": {}}))
    check_config(compose("+dry_run=true"))


def test_models_of_the_hub_are_downloads_unless_cached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tldr = compose_config(["algorithm=online_sft", "model=pythia_1b", "task=tldr", "hardware=node_8gpu"])
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    reward = "cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr"
    assert [each.command for each in downloads(tldr)] == [
        "hf download cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr",
        f"hf download {reward}",
    ]
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, file: None if name == reward else "/cache/config.json"
    )
    assert [each.command for each in downloads(tldr)] == [f"hf download {reward}"]


def test_data_that_no_tokenizer_can_read_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: the files are there, the hub is not."""
    folder = home / "data" / "openr1_math"
    folder.mkdir(parents=True)
    for name in ("train", "validation"):
        (folder / f"{name}.parquet").touch()

    def offline(_: DictConfig) -> None:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(data_checks, "check_data", offline)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    report, missing = check_data_if_there(compose("+dry_run=true"))
    assert report is None and [each.command for each in missing] == ["hf download Qwen/Qwen2.5-Math-7B"]
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: "/cache/config.json")
    with pytest.raises(OSError, match="couldn't connect"):  # then it is something else
        check_data_if_there(compose("+dry_run=true"))
