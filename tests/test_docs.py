"""README, docs/ and the other documents say what the code says: tables, links, commands, keys, code.

Also a hook of .pre-commit-config.yaml, therefore without the fixtures of conftest.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from tests import docs_tables
from tests.docs_tables import BLOCK, DOCUMENTS, ROOT, TABLES, blocks, cells, composed, ordered, rendered
from unify_posttrain.algorithms import ALGORITHMS, Algorithm, build_algorithm
from unify_posttrain.config import conf_dir
from unify_posttrain.typos import dotted_keys

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
MANUAL = [README, *PAGES]
README_LINES = 150
GROUPS = ("algorithm", "model", "task", "hardware")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
KEY = re.compile(r"(?<![\w./{])((?:fusion|trainer|data|algorithm|actor_rollout_ref|critic|reward|prepare)(?:\.\w+)+)(?![\w/(])")
ELSEWHERE = {"algorithm.md", "data.md"}  # names of files


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code(path: Path) -> str:
    """What a document shows as code: blocks and spans."""
    text = read(path)
    return "\n".join([*(match[2] for match in FENCE.finditer(text)), *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))])


# Shape


def test_all_documents_are_there() -> None:
    expected = {"Agent.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md", "docs/README.md", "docs/papers.md"}
    assert expected <= {relative(path) for path in DOCUMENTS}


def test_readme_is_short() -> None:
    assert len(read(README).splitlines()) <= README_LINES


def test_the_index_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w.]+\.md)\)", read(ROOT / "docs" / "README.md")))
    assert {path.name for path in PAGES} - {"README.md"} <= linked


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_a_page_opens_with_what_it_is_for(path: Path) -> None:
    title, _, first = read(path).splitlines()[:3]
    assert title.startswith("# ")
    assert first and not first.startswith(("#", "|", "```", "- "))


# Tables


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if BLOCK.search(read(path))], ids=relative)
def test_tables_are_those_of_the_code(path: Path) -> None:
    assert rendered(read(path)) == read(path), f"{relative(path)} is stale: python -m tests.docs_tables --write"


def test_every_table_is_shown() -> None:
    assert {name for path in DOCUMENTS for name in blocks(read(path))} == set(TABLES)


def test_a_new_algorithm_gets_a_row_and_words_by_hand_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    class New(ALGORITHMS["grpo"]):  # type: ignore[misc]
        """Something new. More of it."""

        name, paper = "new", "arXiv 1234.56789"

    monkeypatch.setitem(ALGORITHMS, "new", New)
    monkeypatch.setattr(docs_tables, "DOCUMENTED", (*docs_tables.DOCUMENTED, "new"))
    kept = {"`hpt`": ["`hpt`", "a title by hand", "old", "old", "old", "old"]}
    assert next(name for name, _ in ordered(kept)) == "hpt"
    assert cells(TABLES["papers"](kept))["`hpt`"][1:3] == ["a title by hand", "[2509.04419](https://arxiv.org/abs/2509.04419)"]
    found = cells(TABLES["algorithms"](kept))["`new`"]
    assert found == ["`new`", "something new", "[1234.56789](https://arxiv.org/abs/1234.56789)"]


# Links


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", read(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(path))):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not re.match(r"[a-z]+:", link) and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    assert broken == []


# Commands, choices and keys


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_commands_exist(path: Path) -> None:
    for command in set(re.findall(r"python -m (unify_posttrain[\w.]*|tests\.[\w.]*\w)", read(path))):
        module = ROOT / command.rstrip(".").replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), f"{path.name}: python -m {command}"
    for target in set(re.findall(r"\bmake ([a-z0-9-]+)", code(path))):
        assert re.search(rf"^{target}:", read(ROOT / "Makefile"), flags=re.MULTILINE), f"{path.name}: make {target}"
    for script in set(re.findall(r"\b((?:exp|eval)_scripts/[\w/.]+\.\w+)", code(path))):
        assert (ROOT / script).is_file() or "NAME" in script, f"{path.name}: {script}"


def test_readme_names_commands() -> None:
    """Else the test before could not fail."""
    assert {"train", "prepare", "explain", "export"} <= set(re.findall(r"python -m unify_posttrain\.(\w+)", read(README)))
    assert {"quickstart", "test"} <= set(re.findall(r"\bmake ([a-z0-9-]+)", code(README)))


@pytest.mark.parametrize("path", MANUAL, ids=relative)
def test_choices_exist(path: Path) -> None:
    commands = [line for line in code(path).splitlines() if "unify_posttrain.evaluate" not in line and "eval_scripts" not in line]
    for group in GROUPS:
        known = {file.stem for file in (conf_dir() / group).glob("*.yaml")} | {"all", "my_method"}
        named = {
            each for values in re.findall(rf"(?<![\w.]){group}=([a-z][\w,]*)", "\n".join(commands)) for each in values.split(",")
        }
        assert named <= known, f"{path.name}: {group}={', '.join(named - known)}"


def keys_named(path: Path) -> Iterator[str]:
    """Full keys, and those that continue one on the same line: `fusion.agg.rl`, `.sft`. NAME stands for any."""
    for line in code(path).splitlines():
        yield from (key for key in KEY.findall(line) if "NAME" not in key and key not in ELSEWHERE)
    for line in read(path).splitlines():
        spans = re.findall(r"`([^`]+)`", line)
        full = next((match[1] for span in spans if (match := KEY.match(span))), "")
        parent = full.rpartition(".")[0]
        yield from (f"{parent}{each}" for span in spans if span.startswith(".") and parent for each in span.split())


def configurations() -> Iterator[set[str]]:
    """Keys of the default configuration, then of every algorithm's and every task's."""
    yield keys_of()
    for group in ("algorithm", "task"):
        for choice in sorted((conf_dir() / group).glob("*.yaml")):
            yield keys_of(f"{group}={choice.stem}")


def keys_of(*overrides: str) -> set[str]:
    keys = set(dotted_keys(OmegaConf.to_container(composed(*overrides))))
    return {prefix for key in keys for prefix in prefixes(key)}


def prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[: number + 1]) for number in range(len(parts)))


def test_keys_exist() -> None:
    """Every dotted key of README and docs/ is one of some algorithm's or task's configuration."""
    named = {key: relative(path) for path in MANUAL for key in keys_named(path)}
    assert {"fusion.shaping.gamma", "fusion.prefix.max_ratio", "trainer.switch_gate", "data.train_batch_size"} <= set(named)
    missing = set(named)
    for known in configurations():
        if not missing:
            break
        missing -= known
    assert {key: named[key] for key in sorted(missing)} == {}


# Code


def python_blocks(path: Path) -> list[str]:
    return [match[2] for match in FENCE.finditer(read(path)) if match[1] == "python"]


def test_the_example_of_an_algorithm_works() -> None:
    (source,) = python_blocks(README)
    namespace: dict[str, type[Algorithm]] = {}
    exec(source, namespace)
    settings = build_algorithm(OmegaConf.to_container(composed("algorithm=dr_grpo").actor_rollout_ref.actor, resolve=True)).settings
    method = namespace["MyMethod"](settings)
    assert [term.name for term in method.terms] == ["rl", "sft", "entropy"]
    assert method.experience.rollouts(has_demonstration=True) == settings.fusion.group_size - 1


def test_the_examples_of_the_estimator_work() -> None:
    nll, configured, gate = python_blocks(ROOT / "docs" / "methods.md")
    namespace: dict[str, object] = {}
    exec(nll.split("counts =")[0], namespace)  # what follows needs a batch: tests/objective
    exec(configured, namespace)
    assert [term.name for term in namespace["terms"]] == ["rl", "off", "entropy"]  # type: ignore[attr-defined]
    statements, _, printed = gate.strip().partition("  # ")
    *before, last = statements.splitlines()
    exec("\n".join(before), namespace)
    assert repr(eval(last, namespace)) == printed


# README's picture


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gate_picture", ROOT / "docs" / "images" / "gate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_drawn_from_readme_or_a_run(picture: ModuleType, tmp_path: Path) -> None:
    spans = picture.spans_of_readme(read(README))
    assert [tuple(span) for span in spans[:1]] == [(1, 8, 80, 20, 14)] and spans[-1].last == 36
    (tmp_path / "config.yaml").write_text("actor_rollout_ref: {rollout: {n: 8}}\n")
    lines = [{"step": 1, "groups": [[0, 0, "sft"], [1, 8, "rl"]]}, {"step": 2, "groups": [[2, 4, "rl"], [3, 4, "rl"]]}]
    (tmp_path / "gate.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [tuple(span) for span in picture.spans_of_run(tmp_path)] == [(1, 1, 50, 50, 50), (2, 2, 0, 100, 50)]
    picture.draw(spans, tmp_path / "gate.svg")
    assert "rollouts solved" in (tmp_path / "gate.svg").read_text()
    assert (ROOT / "docs" / "images" / "gate.svg").is_file()


def test_no_place_is_left_to_be_filled_in() -> None:
    pages = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
    assert len(pages) > 10
    assert [page.name for page in pages if re.search(r"@@\w+@@", page.read_text(encoding="utf-8"))] == []
