"""The command line, and the page in a real browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unify_posttrain.report import main

from .conftest import EVIL

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=4000"
)


def test_one_run_is_reported_in_its_folder(tmp_path: Path, make_run: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    folder = make_run(tmp_path / "mine")
    main([str(folder)])
    assert str(folder / "report.html") in capsys.readouterr().out
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_several_beside_the_first_or_where_told(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folders = [str(make_run(tmp_path / parent / "run")) for parent in ("a", "b")]
    main(folders)
    assert (tmp_path / "a" / "report.html").is_file()
    main([*folders, "--output", str(tmp_path / "new" / "both.html")])
    assert (tmp_path / "new" / "both.html").is_file()


def test_limits_make_the_page_smaller(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folder, sizes = make_run(tmp_path / "mine", text="long " * 1000), []
    for options in ([], ["--characters", "50"], ["--characters", "50", "--rollout-steps", "1", "--validation-prompts", "1"]):
        main([str(folder), *options])
        sizes.append((folder / "report.html").stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_dump_elsewhere(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folder = make_run(tmp_path / "mine")
    (folder / "rollouts").rename(tmp_path / "dump")
    main([str(folder)])
    assert "give it with --rollouts" in (folder / "report.html").read_text()
    main([str(folder), "--rollouts", str(tmp_path / "dump")])
    assert "give it with --rollouts" not in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}/samples"], "is no run"),
        (["{run}", "{run}"], "is given twice"),
        (["{run}", "--characters", "0"], "characters=0 must be at least 1"),
        (["{run}", "--rollouts", "{run}/absent"], "holds no file STEP.jsonl"),
        (["{run}", "{other}", "--rollouts", "{run}/rollouts"], "belongs to one run"),
    ],
)
def test_errors_in_one_line(tmp_path: Path, make_run: Callable[..., Path], arguments: list[str], message: str) -> None:
    names = {"run": str(make_run(tmp_path / "mine")), "other": str(make_run(tmp_path / "other"))}
    with pytest.raises(SystemExit) as ended:
        main([argument.format(**names) for argument in arguments])
    text = str(ended.value)
    assert text.startswith("error: ") and message in text and "\n" not in text


def test_help_names_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "outputs/runs/hpt" in told
    for option in ("RUN", "--output", "--rollouts", "--rollout-steps", "--validation-prompts", "--characters", "(default: 4000)"):
        assert option in told


def test_the_page_is_made_without_torch_or_verl() -> None:
    code = "import sys, unify_posttrain.report; sys.exit(bool({'torch', 'verl', 'ray', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_draws_everything_and_runs_nothing_else(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folders = [make_run(tmp_path / name, text=EVIL) for name in ("hpt", "grpo")]
    page = tmp_path / "page.html"
    for chosen in (folders[:1], folders):
        main([*map(str, chosen), "--output", str(page)])
        command = [str(CHROMIUM), *QUIET.split(), f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri()]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        told = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
        assert ended.returncode == 0 and told == []
        drawn = ended.stdout
        assert 'data-drawn="true"' in drawn and "<title>owned</title>" not in drawn
        figures = drawn.split("<figure ")[1:]
        assert len(figures) > 10 and all(re.search(r'<svg[^>]*role="img"[^>]*aria-label="[^"]{20,}', figure) for figure in figures)
        assert drawn.count('class="prompts"') == 2 and 'data-advantage="' in drawn and 'class="samples' not in drawn
