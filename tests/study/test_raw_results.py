"""The results of the study's runs in docs/study: complete, of the settings of today's study, and what the table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.study_table import OF_ONE_MACHINE, TASKS, read, records, study_table
from unify_posttrain.config import compose_config
from unify_posttrain.study.grid import Grid


@pytest.fixture(scope="module")
def today() -> Grid:
    """conf/study.yaml."""
    return Grid.from_config(compose_config(config_name="study"))


def test_every_method_has_run_on_both_tasks_with_the_same_seeds(today: Grid) -> None:
    runs = read()
    seeds = {tuple(sorted(of)) for of in runs.values()}
    assert len(seeds) == 1 and seeds != {()}
    assert {task for task, _ in runs} == set(TASKS)
    assert {name for _, name in runs} == set(today.defined_algorithms)
    assert len(runs) == len(TASKS) * len(today.defined_algorithms)
    assert all(outcome.after(split) is not None for of in runs.values() for outcome in of.values() for split in ("hard", "easy"))


def test_their_settings_are_those_of_the_study_today(today: Grid) -> None:
    """A change of conf/study.yaml that makes other runs makes these results old."""
    for record in records():
        run = today.run(record["task"], record["algorithm"], record["seed"], record["learning_rate"])
        assert (record["name"], record["overrides"]) == (run.name, list(run.overrides))
    assert len({record["source"] for record in records()}) == 1, "of different versions of the code"


def test_nothing_of_the_machine_is_in_them() -> None:
    for record in records():
        assert record["status"] == "finished" and not set(OF_ONE_MACHINE) & set(record)
        assert not [text for text in _texts(record) if text.startswith("/")]


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (*_texts(key), *_texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _write(folder: Path, task: str, name: str, seed: int, hard: float, **keys: object) -> None:
    outcome = {
        "accuracy": {"hard": {"0": 0.25, "20": hard}, "easy": {"0": 1.0, "20": 0.5}},
        "demonstrations": 12.0,
        "hint_tokens": None,
    }
    outcome |= {"tokens_generated": 5.0, "training_seconds": 1.0, "final_step": 20, **keys}
    content = {"task": task, "algorithm": name, "seed": seed, "outcome": outcome}
    (folder / f"{task}-{name}-{seed}.json").write_text(json.dumps(content))


def test_the_table_by_hand(tmp_path: Path) -> None:
    for seed, (hpt, baseline) in enumerate([(0.5, 0.375), (0.75, 0.375)]):
        for task in TASKS:
            _write(tmp_path, task, "hpt", seed, hpt)
            _write(tmp_path, task, "sft_then_rl", seed, baseline, demonstrations=0.0, hint_tokens=1234.4)
    header, (base, hpt, baseline) = study_table(tmp_path)
    assert header[:5] == ("algorithm", "arithmetic: hard", "− `sft_then_rl`", "easy", "demonstrations")
    assert base[:5] == ["base model", "25.0", "", "100.0", ""]
    # two seeds: t(0.975; 1) = 12.706, s = 25/√2, half-width 12.706 · 25/√2/√2 = 158.8; the difference is 12.5 and 37.5
    assert hpt[:5] == ["`hpt`", "62.5 ± 158.8", "+25.0 ± 158.8", "50.0 ± 0.0", "12"]
    assert baseline[:5] == ["`sft_then_rl`", "37.5 ± 0.0", "0", "50.0 ± 0.0", "1 234 tokens of hints"]
    assert hpt[5:] == hpt[1:5]


def test_a_star_says_that_the_interval_excludes_zero(tmp_path: Path) -> None:
    for seed, hard in enumerate([0.25, 0.26, 0.25]):
        for task in TASKS:
            _write(tmp_path, task, "dft", seed, hard)
            _write(tmp_path, task, "sft_then_rl", seed, 0.75)
    row = next(row for row in study_table(tmp_path)[1] if row[0] == "`dft`")
    assert row[2].startswith("−49.7 ± ") and row[2].endswith("*")


def test_no_runs_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no runs"):
        study_table(tmp_path)
