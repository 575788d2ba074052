"""Hostile text in data, names and results, driven through what each command shows: it is seen, and does nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests import forks
from tests.hostile import HOSTILE, acting, assert_harmless
from unify_posttrain import report
from unify_posttrain.doctoring.findings import green, yellow
from unify_posttrain.doctoring.printing import as_json, show
from unify_posttrain.evaluation import tables
from unify_posttrain.preparation.report import tables as preparation_tables
from unify_posttrain.runs.progress import ProgressDisplay
from unify_posttrain.startup.dry_run import describe_run
from unify_posttrain.startup.inputs import Missing
from unify_posttrain.study import records
from unify_posttrain.study import report as study_report

NAME = HOSTILE.replace("\x00", "").replace("/", "")  # of a file or of a variable
PLANTED = "hunter2-and-more"


def wide() -> Console:
    return Console(file=StringIO(), width=600)


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def command(module: str, *arguments: str, home: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "UNIFY_HOME": str(home), "EVIL": NAME, "OMP_NUM_THREADS": "1"}
    return forks.run(
        [sys.executable, "-m", f"unify_posttrain.{module}", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


# In this process


def test_dry_run(composed: Callable[..., Any]) -> None:
    config = composed("algorithm=hpt").copy()
    config.trainer.run_dir = config.actor_rollout_ref.model.path = HOSTILE
    assert_harmless(describe_run(config, None, [Missing(HOSTILE, HOSTILE)]))


def test_progress(tmp_path: Path) -> None:
    (tmp_path / "gate.jsonl").write_text(json.dumps({"step": 1, "groups": [[0, 0, HOSTILE]]}) + "\n")
    console = wide()
    console.print(ProgressDisplay(tmp_path, HOSTILE, total=4, console=console))
    assert_harmless(text_of(console))


def test_tables_of_prepare(tmp_path: Path) -> None:
    part = {"read": 1, "kept": 0, "dropped": {HOSTILE: 1}, "traces_left_out": {HOSTILE: 1}}
    lengths = {"mean": 1.0, "quantiles": {HOSTILE: 1}, "limit": 2, "over": 0}
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "manifest.json").write_text(
        json.dumps({"report": {HOSTILE: {**part, "tokens": {"prompt": lengths, HOSTILE: lengths}}}})
    )
    console = wide()
    for table in preparation_tables(folder / "manifest.json"):
        console.print(table)
    assert_harmless(text_of(console))


def texts_of(node: Any) -> Iterator[str]:
    if isinstance(node, dict | list):
        yield from (text for each in (node if isinstance(node, list) else (*node, *node.values())) for text in texts_of(each))
    elif isinstance(node, str):
        yield node


def results() -> dict[str, Any]:
    share = {"mean": 0.5, "low": 0.4, "high": 0.6}
    tokens = {"mean": 1.0, "median": 1.0, "longest": 2}
    source = {
        "benchmark": HOSTILE,
        "group": HOSTILE,
        "accuracy": share,
        "problems": 3,
        "n": 1,
        "pass_at": {"1": 0.5},
        "majority": 0.5,
    }
    source |= {"no_answer": 0.0, "truncated": 0.0, "excluded": 0, "dropped_prompts": 0, "response_tokens": tokens}
    model = {"label": HOSTILE, "sources": [{**source, "source": HOSTILE}, {**source, "source": "b"}], "groups": {}, "mean": share}
    difference = {"benchmark": HOSTILE, "source": HOSTILE, "problems": 3, "difference": share, "p_value": 0.1}
    comparison = {"model": HOSTILE, "baseline": HOSTILE, "sources": [difference], "mean": {**difference}}
    benchmark = {"n": 1, "temperature": 0.0, "top_p": 1.0, "reward": {"path": HOSTILE, "name": HOSTILE}}
    settings = {"engine": "hf", "dtype": "float32", "seed": 0, "max_prompt_length": 1, "max_response_length": 1}
    settings |= {"benchmarks": {HOSTILE: benchmark}, "statistics": {"confidence": 0.95, "resamples": 10}}
    published = {"model": HOSTILE, "base": HOSTILE, "origin": HOSTILE, "scores": {HOSTILE: 1.0}, "average": 1.0}
    return {"models": [model], "comparisons": [comparison], "published": [published], "settings": settings}


def test_tables_of_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "900")
    tables.show(results(), tmp_path / NAME)
    shown = capsys.readouterr().out
    assert acting(shown) == set() and "ERROR forged" not in {line[:12] for line in shown.splitlines()}
    assert_harmless(tables.markdown(results()))


def test_page_of_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    node = {
        "trainer": {"experiment_name": HOSTILE, "note": f"https://me:{PLANTED}@host"},
        "env": {"HF_TOKEN": PLANTED},
        HOSTILE: HOSTILE,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(node))
    metrics = {"training/global_step": 1, f"val-core/{HOSTILE}/acc/mean@1": 0.5, "fusion/solve_rate": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": metrics}) + "\n")
    sample = {"input": HOSTILE, "output": HOSTILE, "gts": HOSTILE, "score": 0.0}
    (run / "samples" / "1.jsonl").write_text(json.dumps(sample) + "\n")
    report.main([str(run), "-o", str(tmp_path / f"{NAME}.html")])
    page = (tmp_path / f"{NAME}.html").read_text(encoding="utf-8")
    assert acting(page) == set() and PLANTED not in page and "\\\\x1b[2J" in page
    assert_harmless(capsys.readouterr().out)
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, flags=re.DOTALL)
    assert acting("".join(texts_of(json.loads(data)))) == set(), "also after the script has read it"


def test_lines_of_doctor() -> None:
    console, findings = wide(), [green(HOSTILE, HOSTILE), yellow("b", f"{HOSTILE} HF_TOKEN={PLANTED}", HOSTILE)]
    show(findings, 1.0, console)
    assert_harmless(text_of(console))
    found = json.loads(as_json(findings, 1.0))["findings"]
    assert acting(json.dumps(found, ensure_ascii=False)) == set() and PLANTED not in str(found) + text_of(console)


def test_study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "train.log"
    log.write_text(f"one\n{HOSTILE}\nHF_TOKEN={PLANTED}\n", encoding="utf-8")
    tail = records.tail(log, 5)
    assert acting("\n".join(tail)) == set() and PLANTED not in str(tail)
    task = type("Task", (), {"task": HOSTILE, "rows": [None]})
    failed = type("Result", (), {"record": type("Record", (), {"name": HOSTILE, "finished": False})})
    grid: Any = type("Grid", (), {"folder": tmp_path / NAME, "splits": [HOSTILE], "baseline": HOSTILE})
    monkeypatch.setattr(study_report, "read_records", lambda _: [])
    monkeypatch.setattr(study_report, "summarise", lambda *_: type("Summary", (), {"tasks": [task], "results": [failed]}))
    monkeypatch.setattr(study_report, "cells_of", lambda *_: [HOSTILE] * 5)
    monkeypatch.setenv("COLUMNS", "900")
    study_report.show(grid)
    shown = capsys.readouterr().out
    assert acting(shown) == set() and not any(line.startswith("ERROR forged") for line in shown.splitlines())
    assert "[red]markup[" in shown


# The commands themselves


@pytest.mark.slow
def test_train_and_its_folder(tmp_path: Path) -> None:
    """A dry run: what it prints, and all that it leaves behind."""
    done = command(
        "train", "+dry_run=true", "trainer.experiment_name=${oc.env:EVIL}", f"trainer.project_name=https://me:{PLANTED}@host/x",
        f"+ray_kwargs.ray_init.runtime_env.env_vars.MY_PASSWORD={PLANTED}", f"+extra=[{{name: HF_TOKEN, value: {PLANTED}}}]",
        home=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_harmless(done.stdout)
    assert acting(done.stderr) == set() and PLANTED not in done.stdout + done.stderr
    files = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.yaml", "hydra.yaml", "overrides.yaml", "train.log"} <= set(files)
    assert [name for name, path in files.items() if PLANTED in path.read_text(encoding="utf-8")] == []
    overrides = yaml.safe_load(files["overrides.yaml"].read_text(encoding="utf-8"))
    assert "trainer.experiment_name=${oc.env:EVIL}" in overrides and "+dry_run=true" in overrides


@pytest.mark.slow
def test_a_sweep_and_its_folder(tmp_path: Path) -> None:
    done = command(
        "train", "-m", "+dry_run=true", "algorithm=hpt,grpo", f"+ray_kwargs.ray_init.runtime_env.env_vars.MY_PASSWORD={PLANTED}",
        home=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert PLANTED not in done.stdout + done.stderr
    files = list(tmp_path.rglob("*"))
    assert {"multirun.yaml", "overrides.yaml"} <= {path.name for path in files}
    assert [
        path for path in files if PLANTED in str(path) or (path.is_file() and PLANTED in path.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.slow
def test_prepare(tmp_path: Path) -> None:
    """Names of columns and of files come from strangers; the error quotes them. (A text with NUL costs its row.)"""
    hostile = HOSTILE.replace("\0", "")
    (tmp_path / "columns.jsonl").write_text(json.dumps({NAME: "x", "a": 1}) + "\n")
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps({"q": f"q {i}", "a": i, "s": hostile}) + "\n" for i in range(8)))
    columns = ("prepare.task.columns.prompt=q", "prepare.task.columns.ground_truth=a")
    shared = ("task=convert", *columns, "prepare.task.streaming=true")
    missing = command("prepare", *shared, "prepare.task.source=${oc.env:UNIFY_HOME}/columns.jsonl", home=tmp_path)
    assert missing.returncode == 1 and acting(missing.stdout + missing.stderr) == set(), missing
    assert "present:" in missing.stderr and "\\x1b[2J" in missing.stderr and missing.stderr.strip().count("\n") == 0
    made = command(
        "prepare", *shared, "prepare.task.source=${oc.env:UNIFY_HOME}/plain.jsonl", "prepare.task.columns.data_source=s",
        "prepare.task.folder=${oc.env:UNIFY_HOME}/${oc.env:EVIL}", home=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert_harmless(made.stdout + made.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train", "explain", "doctor", "evaluate", "study", "export", "analyze"])
def test_mistakes_on_a_command_line_are_quoted_harmlessly(module: str, tmp_path: Path) -> None:
    evil = NAME.replace("\n", "")
    done = command(module, f"{evil}=1" if module != "export" else f"run=/does/not/exist/{evil}", home=tmp_path)
    assert done.returncode not in (0, None)
    assert acting(done.stdout + done.stderr) == set() and "data\\x1b" in done.stderr, done
