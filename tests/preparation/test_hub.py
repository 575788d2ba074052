"""The hub without a network: what `load_dataset` is called with, and what is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from unify_posttrain.tasks import PREPARERS

ROW = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": "u"},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Calls of load_dataset, and the rows and commit that it and the hub answer with."""
    state = SimpleNamespace(calls=[], rows={"train": [ROW]}, commit="c0ffee", asked=[])

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict]:
        state.calls.append((args, kwargs))
        return state.rows[kwargs["split"]]

    def dataset_info(_self: Any, name: str, revision: str | None = None) -> SimpleNamespace:
        state.asked.append((name, revision))
        if state.commit is None:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=state.commit)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    return state


def test_name_configuration_split_and_the_commit_of_the_revision(
    hub: SimpleNamespace, settings_of: Callable, tmp_path: Path
) -> None:
    settings = settings_of("dapo_math", config_name="all", revision="v1.0", validation_rows=0)
    paths = PREPARERS["dapo_math"](tmp_path, settings)
    assert hub.asked == [("BytedTsinghua-SIA/DAPO-Math-17k", "v1.0")]
    assert hub.calls == [
        (("BytedTsinghua-SIA/DAPO-Math-17k", "all"), {"split": "train", "revision": "c0ffee", "streaming": True}),
    ]
    assert pq.read_table(paths["train"]).num_rows == 1
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["source"] == {"hub": "BytedTsinghua-SIA/DAPO-Math-17k", "revision": "v1.0"} and manifest["commit"] == "c0ffee"
    PREPARERS["dapo_math"](tmp_path, settings)
    assert len(hub.calls) == len(hub.asked) == 1  # a second call asks nobody
    PREPARERS["dapo_math"](tmp_path, {**settings, "revision": "v2.0"})
    assert len(hub.calls) == 2


def test_without_network_the_revision_stands_as_given(hub: SimpleNamespace, settings_of: Callable, tmp_path: Path) -> None:
    hub.commit = None
    PREPARERS["dapo_math"](tmp_path, settings_of("dapo_math", streaming=False, validation_rows=0))
    assert hub.calls[0][1] == {"split": "train", "revision": None, "streaming": False}
    assert json.loads((tmp_path / "manifest.json").read_text())["commit"] is None


def test_both_splits_of_tldr_are_asked_for(hub: SimpleNamespace, settings_of: Callable, tmp_path: Path) -> None:
    def row(post: str) -> dict:
        return {"messages": [{"role": "user", "content": post}, {"role": "assistant", "content": "short"}]}

    hub.rows = {"train": [row("a"), row("b")], "validation": [row("c")]}
    paths = PREPARERS["tldr"](tmp_path, settings_of("tldr"))
    assert [call[1]["split"] for call in hub.calls] == ["train", "validation"]
    assert [pq.read_metadata(paths[name]).num_rows for name in ("train", "validation")] == [2, 1]


def test_what_the_hub_refuses_is_one_clear_error(
    settings_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: SimpleNamespace
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("gated\nask for access")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ValueError, match="DAPO-Math-17k, split train: cannot be read: RuntimeError: gated ask for access"):
        PREPARERS["dapo_math"](tmp_path, settings_of("dapo_math"))


def test_a_failure_in_the_middle_leaves_no_files(settings_of: Callable, tmp_path: Path, hub: SimpleNamespace) -> None:
    class Breaking(list):
        def __iter__(self) -> Any:
            yield ROW
            raise OSError("connection lost")

    hub.rows = {"train": Breaking()}
    with pytest.raises(ValueError, match="connection lost"):
        PREPARERS["dapo_math"](tmp_path / "out", settings_of("dapo_math", validation_rows=0))
    assert list((tmp_path / "out").iterdir()) == []


def test_only_what_is_needed_is_in_memory(settings_of: Callable, tmp_path: Path, hub: SimpleNamespace) -> None:
    """Rows are pulled as chunks are written: before row n is read, all but the last chunks are on disk."""
    pulled: list[int] = []

    class Watched(list):
        def __iter__(self) -> Any:
            for number in range(1000):
                staged = list((tmp_path / "out").glob(".staging-*/*.parquet"))
                pulled.append(staged[0].stat().st_size if staged else 0)
                yield {**ROW, "prompt": [{"role": "user", "content": f"{number}:" + "x" * 200}]}

    hub.rows = {"train": Watched()}
    PREPARERS["dapo_math"](tmp_path / "out", settings_of("dapo_math", chunk_rows=100, validation_rows=0))
    assert pulled[50] <= pulled[350] < pulled[650] < pulled[950]  # the staged file grows while the source is read
