"""A run does not read again what its checks have read, and starts no process for what one can do."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from omegaconf import DictConfig
from transformers import Qwen2Config

from unify_posttrain.config import compose_config
from unify_posttrain.prepare import prepare_data
from unify_posttrain.startup import dataset as dataset_module
from unify_posttrain.startup.data_checks import check_data
from unify_posttrain.tasks.tiny_model import build_tokenizer
from unify_posttrain.trainer import run_inputs
from unify_posttrain.trainer.run_inputs import RunInputs


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    folder = tmp_path_factory.mktemp("inputs")
    build_tokenizer(256).save_pretrained(folder / "model")
    Qwen2Config().save_pretrained(folder / "model")
    composed = compose_config(
        [
            "algorithm=grpo", f"actor_rollout_ref.model.path={folder}/model", f"prepare.task.folder={folder}/data",
            f"data.train_files={folder}/data/train.parquet", f"data.val_files={folder}/data/test.parquet",
        ]
    )  # fmt: skip
    prepare_data(composed)
    return composed


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    theirs = dataset_module.FusionDataset.__init__

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        found.append(str(arguments or options["data_files"]))
        theirs(self, *arguments, **options)

    monkeypatch.setattr(dataset_module.FusionDataset, "__init__", counted)
    monkeypatch.setattr(run_inputs, "load_processor", lambda config, folder: None)
    return found


def test_what_the_checks_have_read_is_not_read_again(config: DictConfig, reads: list[str]) -> None:
    report = check_data(config)
    assert len(reads) == 2
    inputs = RunInputs.load(config, report)
    assert len(reads) == 2 and (inputs.train, inputs.val) == report.datasets
    again = RunInputs.load(config)
    assert len(reads) == 4
    assert [again.train[row]["raw_prompt"] for row in range(8)] == [inputs.train[row]["raw_prompt"] for row in range(8)]
    assert len(again.val) == len(inputs.val) == report.val_rows


def test_a_processor_goes_with_what_was_read_and_other_datasets_are_read_by_the_run(
    config: DictConfig, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = check_data(config)
    monkeypatch.setattr(run_inputs, "load_processor", lambda config, folder: "of images")
    inputs = RunInputs.load(config, report)
    assert len(reads) == 2 and inputs.processor == "of images" and inputs.train is report.datasets[0]

    class Other(dataset_module.FusionDataset):
        pass

    monkeypatch.setattr(run_inputs, "get_dataset_class", lambda data: Other)
    monkeypatch.setattr(run_inputs, "data_builders", lambda: (lambda *arguments, **options: "read", None))
    assert RunInputs.load(config, report).train == "read"


def test_one_worker_is_this_process(config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    theirs = datasets.Dataset.map

    def seen(self: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(options.get("num_proc"))
        return theirs(self, *arguments, **options)

    monkeypatch.setattr(datasets.Dataset, "map", seen)
    RunInputs.load(config)
    assert asked == [None, None]
