"""Samples on disk survive a kill at any byte, and those of other settings are never mixed in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unify_posttrain.evaluation.store import SAMPLES, SETTINGS, Sample, SampleStore, flat

IDENTITY: dict[str, Any] = {"model": "m1", "sampling": {"n": 2, "temperature": 0.6}, "reward": {"function": {"path": "x.py"}}}
FIRST = Sample(
    row=0, number=0, source="a", seed=7, response="2 ≤ 3\u2028\n\"", tokens=3, truncated=False,
    score=1.0, correct=1, answer="3", gold_ok=1,
)  # fmt: skip
SAMPLES_MADE = [FIRST, replace(FIRST, number=1, response="nein", correct=0, score=0.0), replace(FIRST, row=1, answer="")]


def test_samples_come_back_in_order(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "s", IDENTITY)
    store.append([SAMPLES_MADE[2]])
    store.append(SAMPLES_MADE[:2])
    assert store.ordered() == SAMPLES_MADE
    assert SampleStore(tmp_path / "s", IDENTITY).ordered() == SAMPLES_MADE


def test_a_kill_at_any_byte_loses_at_most_the_line_it_cut(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    SampleStore(whole, IDENTITY).append(SAMPLES_MADE)
    content = (whole / SAMPLES).read_bytes()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / SETTINGS).write_bytes((whole / SETTINGS).read_bytes())
    for length in range(len(content) + 1):
        (torn / SAMPLES).write_bytes(content[:length])
        store = SampleStore(torn, IDENTITY)
        # a line is whole with its closing brace, with or without its newline
        complete = content[:length].count(b"\n") + content[:length].endswith(b"}")
        assert store.ordered() == SAMPLES_MADE[:complete], length
        store.append(SAMPLES_MADE[complete:])
        assert (torn / SAMPLES).read_bytes() == content, length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "m2"}, "model=m1, which is now m2"),
        ({"sampling": {"n": 4, "temperature": 0.6}}, r"sampling\.n=2, which is now 4"),
        ({"reward": {"function": {"path": "x.py", "name": "f"}}}, r"reward\.function\.name=None, which is now f"),
        ({"reward": {}}, r"reward=None, which is now {}"),
    ],
)
def test_other_settings_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    SampleStore(tmp_path, IDENTITY).append(SAMPLES_MADE)
    before = (tmp_path / SAMPLES).read_bytes()
    with pytest.raises(ValueError, match=rf"{message}.*output=….*overwrite=true"):
        SampleStore(tmp_path, {**IDENTITY, **change})
    assert (tmp_path / SAMPLES).read_bytes() == before
    assert SampleStore(tmp_path, {**IDENTITY, **change}, overwrite=True).ordered() == []


def test_overwrite_keeps_samples_of_the_same_settings(tmp_path: Path) -> None:
    SampleStore(tmp_path, IDENTITY).append(SAMPLES_MADE)
    assert SampleStore(tmp_path, IDENTITY, overwrite=True).ordered() == SAMPLES_MADE


def test_samples_without_settings_are_refused(tmp_path: Path) -> None:
    SampleStore(tmp_path, IDENTITY).append(SAMPLES_MADE)
    (tmp_path / SETTINGS).unlink()
    with pytest.raises(ValueError, match="unknown settings"):
        SampleStore(tmp_path, IDENTITY)
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        SampleStore(tmp_path, IDENTITY)


@pytest.mark.parametrize("damage", [b'{"row": 0}\n', b"nonsense\n", b"[]\n", b"\xff\xfe\n"])
def test_damage_before_the_last_line_is_named(damage: bytes, tmp_path: Path) -> None:
    SampleStore(tmp_path, IDENTITY).append(SAMPLES_MADE)
    path = tmp_path / SAMPLES
    path.write_bytes(damage + path.read_bytes())
    with pytest.raises(ValueError, match="line 1"):
        SampleStore(tmp_path, IDENTITY)


def test_settings_are_readable(tmp_path: Path) -> None:
    SampleStore(tmp_path, IDENTITY)
    assert json.loads((tmp_path / SETTINGS).read_text())["sampling"] == IDENTITY["sampling"]


def test_flat() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
