"""Settings as the configuration composes them, small sources in the published columns, and a tokenizer of words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from unify_posttrain.config import compose_config
from unify_posttrain.tasks import PREPARERS

Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def settings_of() -> Callable[..., Settings]:
    """Task name and changes of `prepare.task` -> the node, with all it takes from conf/."""
    composed: dict[str, Settings] = {}

    def build(task: str, **changes: Any) -> Settings:
        if task not in composed:
            config = compose_config([f"task={task}", "algorithm=grpo", "model=qwen3_4b"])
            composed[task] = OmegaConf.to_container(config.prepare.task, resolve=True)
        unknown = set(changes) - set(composed[task])
        assert not unknown, f"no such setting: {unknown}"
        return {**composed[task], **changes}

    return build


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Rows -> a JSONL file."""

    def lines(rows: Iterable[Mapping[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return lines


@pytest.fixture
def prepared(settings_of: Callable[..., Settings], tmp_path: Path) -> Callable[..., tuple[list[dict], dict]]:
    """Prepare a task from a local source; returns the rows of train.parquet and the manifest."""

    def run(task: str, source: Path, **changes: Any) -> tuple[list[dict], dict]:
        changes = {"validation_rows": 0, "validation_split": None, "gold_version": None, **changes}
        folder = tmp_path / "out" / task
        paths = PREPARERS[task](folder, settings_of(task, source=str(source), **changes))
        return pq.read_table(paths["train"]).to_pylist(), json.loads((folder / "manifest.json").read_text())

    return run


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> str:
    """Folder of a tokenizer in which every word is one token; its template writes `role word … answer` and nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # here, because transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", eos_token="?")
    turns = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    fast.chat_template = turns + "{% if add_generation_prompt %}answer{% endif %}"
    folder = tmp_path / "tokenizer"
    fast.save_pretrained(folder)
    return str(folder)
