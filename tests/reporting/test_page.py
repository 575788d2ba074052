"""The page: its structure, its data, and that nothing from a model or a data set becomes markup."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.reporting import build_report
from unify_posttrain.reporting.charts import charts, spans, thinned
from unify_posttrain.reporting.page import json_for_html
from unify_posttrain.reporting.run import read_runs
from unify_posttrain.reporting.settings import load_settings
from unify_posttrain.runs.environment import environment
from unify_posttrain.text import one_line, visible

from .conftest import EVIL, PROMPTS, write_lines

LIMITS = load_settings().limits
VOID = {"meta", "input", "br", "img", "link"}


class Reader(HTMLParser):
    """Elements with their attributes, scripts with their content, and text; fails on elements that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def data(self) -> dict[str, Any]:
        [embedded] = [content for attributes, content in self.scripts if attributes.get("type") == "application/json"]
        return json.loads(embedded)

    def ids(self, tag: str) -> list[str | None]:
        return [attributes.get("id") for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> str:
    return build_report([make_run(tmp_path_factory.mktemp("one") / "mine")])


def test_every_chart_has_a_place_a_label_and_data(one: str) -> None:
    page = Reader(one)
    drawn = page.data["charts"]
    assert page.ids("figure") == [chart["id"] for chart in drawn] and len(drawn) >= 12
    for chart in drawn:
        assert chart["title"] in page.texts and chart["caption"] in page.texts
        if chart["kind"] == "heat":
            assert len(chart["x"]) == len(chart["ends"]) == len(chart["cells"]) > 0
            assert all(len(column) == chart["rows"] + 1 and sum(column) == pytest.approx(1, abs=1e-3) for column in chart["cells"])
            continue
        assert chart["series"]
        for series in chart["series"]:
            assert series["label"] and len(series["x"]) == len(series["y"]) > 0 and series["x"] == sorted(series["x"])
    zones = next(chart for chart in drawn if chart["title"] == "Prompts by zone")
    assert [sum(values) for values in zip(*(series["y"] for series in zones["series"]), strict=True)] == [PROMPTS] * 10
    titles = {chart["title"] for chart in drawn}
    assert {
        "Accuracy by source",
        "Rollouts solved",
        "Solved rollouts per prompt",
        "Share of demonstrations",
        "Parts of the loss",
    } <= titles
    assert {"Mean effective coefficient", "Entropy", "Response length", "Time by stage", "Gradient norm"} <= titles


def test_what_a_newcomer_reads_first(one: str) -> None:
    page = Reader(one)
    text = " ".join(page.texts)
    head = text[: text.index("At a glance", text.index("Configuration") + 1)]  # behind the navigation
    for words in (
        "mine",
        "hpt",
        "tiny",
        "sums",
        "10 of 10",
        "Working",
        "hard 10 % → 90 %",
        "fell from 37.5 % to 0 %",
        "+80.0 points",
    ):
        assert words in head


def test_nothing_is_loaded_and_only_our_script_may_run(one: str) -> None:
    page = Reader(one)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes and "style" not in attributes and not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(|https?://(?!www\.w3\.org/2000/svg)", one)
    [script] = [content for attributes, content in page.scripts if "type" not in attributes]
    [policy] = [a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and b64encode(sha256(script.encode()).digest()).decode() in policy


def test_text_of_models_and_data_stays_text(tmp_path: Path, make_run: Callable[..., Path], one: str) -> None:
    page = build_report([make_run(tmp_path / "evil", text=EVIL)])
    read = Reader(page)
    assert [tag for tag, _ in read.elements].count("script") == 2 and "img" not in read.ids("img")
    assert {tag for tag, _ in read.elements} == {tag for tag, _ in Reader(one).elements}
    assert "<img" not in page and "owned</" not in page
    assert any(visible(EVIL) in prompt["prompt"] for prompt in read.data["rollouts"][0][0]["prompts"]), "and nothing is lost"
    assert any(one_line(EVIL) in text for text in read.texts), "the name of the run"


@given(st.text())
def test_json_in_a_script_comes_back_whole(text: str) -> None:
    written = json_for_html({"text": text})
    assert json.loads(written) == {"text": text} and not set("<>&\u2028\u2029") & set(written)


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_for_html([float("nan")])


def test_several_runs_share_charts(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folders = [make_run(tmp_path / name, algorithm=name, dump=name == "hpt") for name in ("hpt", "grpo", "sft")]
    page = Reader(build_report(folders))
    by_title = {chart["title"]: chart for chart in page.data["charts"]}
    assert [series["label"] for series in by_title["Accuracy: sums_hard"]["series"]] == ["hpt", "grpo", "sft"]
    assert [series["colour"] for series in by_title["Entropy"]["series"]] == ["run0", "run1", "run2"]
    assert {"Prompts by zone: hpt", "Prompts by zone: grpo", "Share of demonstrations: rows"} <= set(by_title)
    assert [bool(steps) for steps in page.data["rollouts"]] == [True, False, False]
    text = " ".join(page.texts)
    assert "settings that differ: 1" in text and "fusion.algorithm" in text
    assert "trainer.rollout_data_dir=/somewhere/grpo/rollouts lies outside" in text
    buttons = [attributes["data-run"] for tag, attributes in page.elements if tag == "button" and "data-run" in attributes]
    assert buttons == ["0", "1", "2"]


def test_runs_without_this_or_that(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    """A run that has just started, one that was never configured here, one whose files are torn."""
    started = tmp_path / "started"
    started.mkdir()
    (started / "config.yaml").write_text("fusion: {algorithm: hpt}\ntrainer: {experiment_name: new, total_training_steps: 5}")
    page = Reader(build_report([started]))
    assert page.data["charts"] == [] and "No step has been trained yet." in " ".join(page.texts)
    assert any("Start the run with trainer.rollout_data_dir=" in text for text in page.texts)
    torn = make_run(tmp_path / "torn")
    for name in ("metrics.jsonl", "gate.jsonl", "rollouts/10.jsonl", "samples/10.jsonl"):
        (torn / name).write_text((torn / name).read_text()[:-30])
    (torn / "config.yaml").unlink()
    page = Reader(build_report([torn]))
    assert page.data["charts"] and "cut short" in " ".join(page.texts) and "No config.yaml" in " ".join(page.texts)
    only = tmp_path / "validated"
    write_lines(only / "metrics.jsonl", [{"step": 0, "data": {"val-core/a/acc/mean@1": 0.5}}])
    [chart] = Reader(build_report([only])).data["charts"]
    assert chart["series"][0]["x"] == [0]
    assert len(Reader(build_report([started, torn, only])).data["runs"]) == 3


def test_phases_are_marked(tmp_path: Path) -> None:
    data = [{"training/global_step": s, "actor/entropy": 0.1, "fusion/phase": float(s > 2)} for s in range(1, 5)]
    write_lines(tmp_path / "metrics.jsonl", [{"step": entry["training/global_step"], "data": entry} for entry in data])
    [chart] = charts(read_runs([tmp_path]), LIMITS)
    assert chart["marks"] == [{"x": 3, "label": "phase 2"}]


@given(st.integers(0, 200), st.integers(1, 30))
def test_spans_cover_everything_once(length: int, most: int) -> None:
    parts = spans(length, most)
    assert len(parts) == min(length, most)
    assert [index for start, end in parts for index in range(start, end)] == list(range(length))
    sizes = {end - start for start, end in parts}
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_long_curves_are_averaged() -> None:
    assert thinned([1, 2, 3, 4, 5], [1, 3, 0, 2, 4], 2) == ([2, 5], [2, 2])  # (1+3)/2, (0+2+4)/3
    assert thinned([1, 2], [5, 6], 9) == ([1, 2], [5, 6])


def test_environment_is_plain_and_complete() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert {"python", "platform", "packages", "git", "cores", "memory_gib", "gpus"} == set(facts)
    assert facts["packages"]["verl"] == "0.7.1" and {"torch", "ray", "vllm", "transformers"} <= set(facts["packages"])
    assert facts["cores"] >= 1 and facts["memory_gib"] > 0
