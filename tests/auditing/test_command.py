"""`python -m unify_posttrain.grade`: the real command on a small file, its page, and its errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import HOSTILE, acting, assert_harmless
from unify_posttrain.auditing import judging
from unify_posttrain.auditing.judging import MASKED, MATH_VERIFY, NO_ANSWER, OWN, RIGHT, WRONG, judge
from unify_posttrain.auditing.records import Record
from unify_posttrain.auditing.settings import load_settings
from unify_posttrain.grade import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

ROWS = [
    {"response": r"So \boxed{4}.", "ground_truth": "4", "expected": 1, "family": "numbers", "version": 6},
    {"response": r"So \boxed{5}.", "ground_truth": "4", "expected": 0, "family": "numbers", "version": 6},
    {
        "response": r"<think>x</think> \boxed{\frac{1}{2}}",
        "ground_truth": "0.5",
        "expected": 1,
        "family": "fractions",
        "version": 7,
    },
    {"response": "nothing", "ground_truth": "4", "expected": 0, "family": "numbers", "version": 6},
    {"response": r"\boxed{3}", "ground_truth": "", "expected": 0, "family": "ungradable", "version": 6},
    {"response": f"{EVIL}{HOSTILE} \\boxed{{2}}", "ground_truth": "2", "expected": 0, "family": EVIL, "version": 6},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder and the output of one real run of the command."""
    folder = tmp_path_factory.mktemp("grade")
    file = write(folder / "mine.jsonl", ROWS)
    command = [sys.executable, "-m", "unify_posttrain.grade", str(file), "--timeout-seconds", "60"]
    return folder, subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_real_command(graded: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = graded
    assert done.returncode == 0, done.stderr
    rows = [[each.strip() for each in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    # Version 6: rows 1, 3 and 6 are right, 4 has no answer, 5 is masked. Version 7 reads row 3 alone.
    assert ["6", "5", "3", "60.0%", "1", "1", "0"] in [row[:7] for row in rows]
    assert ["7", "5", "1", "20.0%", "4", "1", "0"] in [row[:7] for row in rows]
    assert ["own", "6", "5", "83.3%", "1", "0"] in rows, "the last row is expected to be wrong, and is right"
    assert any(row[:3] == [EVIL, "1", "0"] for row in rows) or "document.title" in done.stdout
    assert acting(done.stdout) == set()
    assert (folder / "mine.grades.html").is_file() and "mine.grades.html (0." in done.stdout


@pytest.mark.slow
def test_the_page_shows_texts_and_obeys_none(graded: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    page = (graded[0] / "mine.grades.html").read_text(encoding="utf-8")
    assert "<img" not in page and page.count("<script") == 2 and acting(page) == set()
    assert not re.search(r"url\(|@import|fetch\(|innerHTML|eval\(|https?://(?!www\.w3\.org/2000/svg)", page)
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, flags=re.DOTALL)
    read = json.loads(data)
    assert read["judges"] == ["own", *map(str, range(8)), "math-verify"] and read["main"] == "own"
    assert read["rows"][0]["place"] == 6, "the false accept comes first"
    assert EVIL in read["rows"][0]["response"] and len(read["rows"]) == len(ROWS)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_draws_it(graded: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    page = (graded[0] / "mine.grades.html").as_uri()
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr", "--v=0")
    command = [str(CHROMIUM), *quiet, "--virtual-time-budget=4000", f"--user-data-dir={tmp_path}/profile", "--dump-dom", page]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and [line for line in ended.stderr.splitlines() if "CONSOLE" in line] == []
    assert 'data-drawn="true"' in ended.stdout and "<title>owned</title>" not in ended.stdout
    assert "own: false accepts (1)" in ended.stdout and "1 of 6 rows" in ended.stdout


@pytest.mark.slow
def test_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"output": r"\boxed{x+1}", "gts": "1+x"}, {"output": "7", "gts": "7"}]
    main([str(write(tmp_path / "1.jsonl", rows)), "--version", "4", "6", "--json", "--workers", "1", "--timeout-seconds", "60"])
    said = json.loads(capsys.readouterr().out)
    assert list(said["judges"]) == ["4", "6", "math-verify"] and said["expected"] is None
    assert said["verdicts"][0]["verdicts"]["6"]["state"] == RIGHT and said["verdicts"][1]["verdicts"]["6"]["state"] == NO_ANSWER
    assert [each.name for each in tmp_path.iterdir()] == ["1.jsonl"], "no page unless one is asked for"
    main([str(tmp_path / "1.jsonl"), "--version", "6", "--json", "-o", str(tmp_path / "new" / "page.html"), "--workers", "1"])
    assert json.loads(capsys.readouterr().out)["rows"] == 2 and (tmp_path / "new" / "page.html").is_file()


@pytest.mark.slow
def test_a_judge_that_hangs_or_crashes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "TARGET", "tests.auditing.hanging:judge_item")
    texts = {"right": "g", "wrong": "g", "hang": "g", "crash": "g", "empty": "g", "right again": "ungradable"}
    records = [Record(place, text, gold) for place, (text, gold) in enumerate(texts.items(), 1)]
    settings = load_settings(timeout_seconds=1.0, workers=1, memory_mb=1024)
    judged = judge(records, [2, 7], settings)
    states = [[verdict.state for verdict in each.verdicts.values()] for each in judged]
    assert states == [
        [RIGHT, RIGHT, RIGHT],
        [WRONG, RIGHT, WRONG],
        ["timeout"] * 3,
        ["crash"] * 3,
        [NO_ANSWER, RIGHT, NO_ANSWER],
        [MASKED] * 3,
    ]
    assert [list(each.verdicts) for each in judged] == [["2", "7", MATH_VERIFY]] * 6
    assert judged[2].verdicts["2"].seconds == 1.0 and judged[0].verdicts["2"].seconds == 0.25
    assert [each.differs for each in judged] == [False, True, False, False, True, False]


def test_a_row_that_names_its_version_is_judged_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = judging._asked(Record(1, "", "", 7), [2])
    assert asked == {OWN: 7, "2": 2, MATH_VERIFY: MATH_VERIFY} and OWN not in judging._asked(Record(1, "", ""), [2])


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "is no file"),
        ("", [], "holds no rows"),
        ('{"response": "a", "ground_truth": "1"}\n{', [], "line 2: invalid JSON"),
        ('{"a": "x", "ground_truth": "1"}', [], "has no column response or output; it has a, ground_truth"),
        ('{"response": "a", "ground_truth": "1"}', ["--response", "b"], "has no column b; it has response, ground_truth"),
        ('{"response": "a", "ground_truth": "1"}', ["--version", "9"], "reward_impl_version=9 is unknown; choose one of 0, 1"),
        ('{"response": "a", "ground_truth": "1"}', ["--workers", "0"], "workers=0 must be above 0"),
    ],
)
def test_bad_input_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, options: list[str], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        main([str(path), *options])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and message in said.err and said.err.count("\n") == 1


def test_hostile_names_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({HOSTILE: 1}))
    with pytest.raises(SystemExit):
        main([str(path)])
    assert_harmless(capsys.readouterr().err)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for option in ("FILE", "--version", "--response", "--ground-truth", "--output", "--json", "--workers", "(default: 5.0"):
        assert option in told


def test_it_knows_neither_torch_nor_verl() -> None:
    code = (
        "import sys, unify_posttrain.grade, unify_posttrain.auditing.page\n"
        "sys.exit(bool({'torch', 'verl', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
