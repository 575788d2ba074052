"""What README.md and SECURITY.md promise is tested: every paragraph and every row of a table names its tests, or promises nothing.

tests/claims.yaml maps the beginning of each to the ids of its tests, or to a word that says what it is instead: a new promise
without a test fails here, and so does a test that was renamed, removed or is no longer collected.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CLAIMS: dict[str, dict[str, list[str] | str]] = yaml.safe_load((ROOT / "tests" / "claims.yaml").read_text(encoding="utf-8"))
# Instead of tests: what a reader is told that no test can hold.
NO_PROMISE = {"explanation", "advice", "limit", "example"}
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"<!-- table: \w+ -->.*?<!-- end -->", re.DOTALL)  # held to the code by tests/test_docs.py


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, items of lists and rows of tables, each in one line; headings, heads of tables, code and pictures are none."""
    text = GENERATED.sub("", FENCE.sub("", text))
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.strip().splitlines()
        if not lines or lines[0].startswith(("#", "![")):
            continue
        if lines[0].startswith("|"):
            yield from (line.strip() for line in lines[2:])
        else:
            yield from (re.sub(r"\s+", " ", item).strip() for item in re.split(r"\n(?=[-\d] |\d\. )", paragraph.strip()))


def ids_of(document: str) -> list[str]:
    return sorted({each for ids in CLAIMS[document].values() if isinstance(ids, list) for each in ids})


@cache
def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("document", ["README.md", "SECURITY.md"])
def test_every_promise_has_its_entry(document: str) -> None:
    found = list(blocks((ROOT / document).read_text(encoding="utf-8")))
    begun = {block: [begin for begin in CLAIMS[document] if block.startswith(begin)] for block in found}
    assert {block: begins for block, begins in begun.items() if len(begins) != 1} == {}, "one entry of tests/claims.yaml each"
    stale = set(CLAIMS[document]) - {begin for begins in begun.values() for begin in begins}
    assert stale == set(), f"no longer in {document}"


@pytest.mark.parametrize("document", ["README.md", "SECURITY.md"])
def test_every_entry_names_tests_or_says_what_it_is(document: str) -> None:
    for begin, ids in CLAIMS[document].items():
        assert (ids in NO_PROMISE) if isinstance(ids, str) else ids, f"{begin}: give tests, or one of {sorted(NO_PROMISE)}"
    for each in ids_of(document):
        file, _, name = each.partition("::")
        assert (ROOT / file).is_file() and name in functions(ROOT / file), f"{each} does not exist"


@pytest.mark.slow
def test_the_tests_are_collected(request: pytest.FixtureRequest) -> None:
    """By this session, or, where it has other files, by one of their own."""
    here = {item.nodeid.partition("[")[0] for item in request.session.items}
    wanted = sorted({each for document in CLAIMS for each in ids_of(document)} - here)
    if not wanted:
        return
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *wanted]
    done: Any = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    collected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert set(wanted) <= collected, set(wanted) - collected


def test_the_reader_of_blocks_sees_all_kinds() -> None:
    text = "# A\n\nOne\ntwo.\n\n| a | b |\n|---|---|\n| c | d |\n| e | f |\n\n```\ncode\n```\n\n- x\n- y\n  z\n\n![p](q)\n"
    assert list(blocks(text)) == ["One two.", "| c | d |", "| e | f |", "- x", "- y z"]
