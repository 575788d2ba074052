"""Whole studies with a stub for the trainings: what is run, what is repeated, what is reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unify_posttrain.study.grid import Grid
from unify_posttrain.study.records import read_record, record_path, source_digest, write_record

pytestmark = pytest.mark.slow

Build = Callable[..., Grid]
Conduct = Callable[[Grid], int]
Calls = Callable[[Grid], list[str]]


def results(grid: Grid) -> dict[str, Any]:
    """results.json, which must be strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"results.json holds {constant}")

    return json.loads((grid.folder / "results.json").read_text(), parse_constant=refuse)


def rows(grid: Grid, task: str = "sums") -> dict[str, dict[str, Any]]:
    return {row["algorithm"]: row for row in results(grid)["tasks"][task]["rows"]}


def report(grid: Grid) -> str:
    return (grid.folder / "results.md").read_text()


def line(grid: Grid, algorithm: str) -> list[str]:
    """The cells of an algorithm's line in results.md."""
    found = [text for text in report(grid).splitlines() if text.startswith(f"| {algorithm} |")]
    assert len(found) == 1
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_table_of_a_study(grid: Build, study: Conduct, calls: Calls) -> None:
    run = grid(seeds=[0, 1, 2])
    assert study(run) == 0
    assert calls(run)[0] == "prepare sums" and len(calls(run)) == 7
    # good: .5 + seed/100 + rate .01 = .51, .52, .53: mean .52, s .01, half-width 4.302653 * .01 / sqrt(3) = .0248414.
    good = rows(run)["good"]
    assert good["after"]["hard"]["mean"] == pytest.approx(0.52)
    assert good["after"]["hard"]["half_width"] == pytest.approx(0.0248414, abs=1e-6)
    # base: .4 + seed/50 = .40, .42, .44. Differences .11, .10, .09: mean .10, s .01, the same half-width.
    assert good["versus_baseline"] == pytest.approx({"mean": 0.1, "half_width": 0.0248414, "n": 3}, abs=1e-6)
    assert good["seeds"] == [0, 1, 2] and good["unfinished"] == []
    # 2 steps of 16 rows, 1000 + seed tokens and 2 s each.
    assert (good["demonstrations"], good["tokens_generated"], good["training_seconds"]) == (32.0, 2002.0, 4.0)
    assert good["curves"]["1"] == pytest.approx({"0": 0.1, "1": 0.31, "2": 0.52})
    assert line(run, "good") == ["good", "3", "10.0", "52.0 ± 2.5", "100.0 ± 0.0", "–", "32", "2 002", "4", "+10.0 ± 2.5*"]
    # The baseline's tokens are not in its metrics: not measured, not 0.
    assert line(run, "base") == ["base", "3", "10.0", "42.0 ± 5.0", "100.0 ± 0.0", "–", "32", "–", "4", "baseline"]
    assert report(run).index("| good |") < report(run).index("| base |")
    for name in ("sums_accuracy.png", "sums_demonstrations.png"):
        assert (run.folder / name).read_bytes().startswith(b"\x89PNG") and f"({name})" in report(run)


def test_document_states_how_it_came_about(grid: Build, study: Conduct) -> None:
    run = grid(seeds=[0], algorithms=["good", "base", "bold"])
    study(run)
    text = report(run)
    for said in (
        "Search: none. Every algorithm ran with one learning rate (0.01)",
        "- Seeds: 0.",
        "`trainer.total_training_steps=2`",
        "python -m unify_posttrain.study",
        "fusion.seed=0",
        "Equal in all of these runs: `rate=0.01`",
        "**Not equal:** `label` is base for base; bold for bold; good for good.",
        "Settings of single algorithms: bold `bold=1`.",
        "Sums are easy.",
        source_digest(),
    ):
        assert said in text, said
    record = read_record(run.folder, "sums-good-0")
    assert record is not None
    assert record.overrides == list(run.run("sums", "good", 0, 0.01).overrides)
    assert (record.exit_code, record.final_step, record.status) == (0, 2, "finished")
    assert record.command[-len(record.overrides) :] == record.overrides
    assert record.versions["verl"] == "0.7.1" and record.seconds > 0
    assert "threads 1" in (run.folder / record.log).read_text()


def test_one_seed_has_no_interval(grid: Build, study: Conduct) -> None:
    run = grid(seeds=[4])
    study(run)
    # good .5 + .04 + .01 = .55, base .4 + .08 = .48.
    assert line(run, "good")[3] == "55.0" and line(run, "good")[-1] == "+7.0"
    assert rows(run)["good"]["after"]["hard"]["half_width"] is None


def test_finished_runs_are_not_repeated(grid: Build, study: Conduct, calls: Calls) -> None:
    study(grid(seeds=[0], algorithms=["good"]))
    whole = grid(seeds=[0, 1])
    study(whole)
    assert sorted(calls(whole)[2:]) == ["prepare sums", "train sums-base-0", "train sums-base-1", "train sums-good-1"]
    before = calls(whole)
    assert study(whole) == 0
    assert calls(whole) == before
    assert len(results(whole)["study"]["invocations"]) == 2  # one that runs nothing is none


def test_the_report_covers_what_earlier_commands_have_finished(grid: Build, study: Conduct) -> None:
    study(grid(seeds=[0], algorithms=["base"]))
    run = grid(seeds=[1], algorithms=["good", "base"])
    study(run)
    assert rows(run)["base"]["seeds"] == [0, 1] and rows(run)["good"]["seeds"] == [1]
    assert rows(run)["good"]["versus_baseline"]["n"] == 1
    only = grid(algorithms=[])
    (only.folder / "results.md").unlink()
    assert study(only) == 0
    assert rows(only).keys() == {"base", "good"} and "| good |" in report(only)


def test_runs_of_other_settings_are_made_again_and_never_mixed_in(grid: Build, study: Conduct, calls: Calls) -> None:
    study(grid(seeds=[0, 1], algorithms=["good"]))
    longer = {"trainer": {"total_training_steps": 3}}
    run = grid(seeds=[0], algorithms=["good"], common=longer)
    study(run)
    assert calls(run).count("train sums-good-0") == 2
    assert rows(run)["good"]["seeds"] == [0] and rows(run)["good"]["curves"]["0"].keys() == {"0", "1", "2", "3"}
    assert [record["name"] for record in results(run)["excluded"]] == ["sums-good-1"]
    assert "## Runs with other settings" in report(run) and "- sums-good-1: finished" in report(run)


def test_failures_are_listed_and_tried_again(grid: Build, study: Conduct, calls: Calls) -> None:
    run = grid(seeds=[0], algorithms=["good", "broken"])
    assert study(run) == 1
    assert line(run, "broken")[:4] == ["broken", "0 (1 unfinished)", "–", "–"]
    text = report(run)
    assert "### sums-broken-0: failed, exit code 3" in text and "last words of broken" in text
    assert "1 finished, 1 failed or interrupted, 0 not made yet" in text
    assert study(run) == 1
    assert calls(run).count("train sums-broken-0") == 2 and calls(run).count("train sums-good-0") == 1


def test_a_task_that_cannot_be_prepared_does_not_stop_the_others(grid: Build, study: Conduct, calls: Calls) -> None:
    run = grid(seeds=[0], algorithms=["good"], tasks=["sums", "unprepared"])
    assert study(run) == 1
    assert rows(run)["good"]["seeds"] == [0]
    assert rows(run, "unprepared")["good"]["unfinished"] == [0]
    assert "train unprepared-good-0" not in calls(run)
    assert "`prepare-unprepared.log` ends with" in report(run)


def test_nan_is_not_measured(grid: Build, study: Conduct) -> None:
    run = grid(seeds=[0, 1], algorithms=["nan", "base"])
    assert study(run) == 0
    row = rows(run)["nan"]
    assert row["after"]["hard"] == {"mean": None, "half_width": None, "n": 0}
    assert row["versus_baseline"]["n"] == 0 and row["seeds"] == [0, 1]
    assert line(run, "nan")[3] == "–" and line(run, "nan")[-1] == "–"
    assert report(run).index("| base |") < report(run).index("| nan |")


def test_a_study_without_its_baseline(grid: Build, study: Conduct) -> None:
    run = grid(seeds=[0], algorithms=["good"])
    study(run)
    assert line(run, "good")[-1] == "–"


def test_search_chooses_on_other_seeds_than_it_reports(grid: Build, study: Conduct, calls: Calls) -> None:
    """good's accuracy grows with the rate, base's does not depend on it: the first of equal rates."""
    run = grid(seeds=[0, 1], search_seeds=[50], learning_rates=[0.1, 0.3, 0.2])
    assert study(run) == 0
    assert len(calls(run)) == 1 + 2 * 3 + 2 * 2
    assert rows(run)["good"]["learning_rate"] == 0.3 and rows(run)["base"]["learning_rate"] == 0.1
    assert rows(run)["good"]["seeds"] == [0, 1]
    # good: .5 + seed/100 + .3 = .80, .81.
    assert rows(run)["good"]["after"]["hard"]["mean"] == pytest.approx(0.805)
    # The search, seed 50 with each rate: .5 + .5 + rate.
    assert "| good | 110.0 | **130.0** | 120.0 |" in report(run)
    assert "same 3 (0.1, 0.3, 0.2)" in report(run) and "search seeds (50), which are not the seeds reported" in report(run)
    before = calls(run)
    assert study(run) == 0 and calls(run) == before


def test_a_search_without_result_is_said(grid: Build, study: Conduct) -> None:
    run = grid(seeds=[0], algorithms=["broken", "base"], search_seeds=[5], learning_rates=[0.1, 0.2])
    assert study(run) == 1
    assert "Not made yet (algorithm and seeds): broken 0." in report(run)
    assert "| broken | – | – |" in report(run)
    assert "### sums-broken-5-lr0.1: failed" in report(run)


def test_an_unreadable_record_counts_as_not_made(grid: Build, study: Conduct, calls: Calls) -> None:
    run = grid(seeds=[0], algorithms=["good"])
    study(run)
    record_path(run.folder, "sums-good-0").write_text('{"name": "sums-go')
    assert study(run) == 0
    assert calls(run).count("train sums-good-0") == 2


def test_runs_of_different_code_are_announced(grid: Build, study: Conduct) -> None:
    run = grid(seeds=[0])
    study(run)
    assert "different code" not in report(run)
    record = read_record(run.folder, "sums-good-0")
    assert record is not None
    write_record(run.folder, replace(record, source="0123456789ab"))
    study(grid(algorithms=[]))
    assert "**Runs of different code are mixed in these tables.**" in report(run)


def test_source_digest_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    first = source_digest([tmp_path])
    (tmp_path / "notes.txt").write_text("no source")
    assert source_digest([tmp_path]) == first
    (tmp_path / "a.py").write_text("x = 2")
    second = source_digest([tmp_path])
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, source_digest([tmp_path])}) == 3


DRIVER = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
sys.path.insert(0, {tests!r})
from conftest import COMMANDS
from omegaconf import OmegaConf
from unify_posttrain.study.conduct import conduct
from unify_posttrain.study.grid import Grid
sys.exit(conduct(Grid(**{values!r}), "study", COMMANDS, lambda run, keys: {{}}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_and_still_writes_the_results(grid: Build, tmp_path: Path, number: signal.Signals) -> None:
    run = grid(seeds=[0, 1], algorithms=["good", "slow"], parallel=1)
    run.folder.mkdir(parents=True)
    values = {name: getattr(run, name) for name in run.__dataclass_fields__} | {"folder": None}
    code = DRIVER.format(tests=str(Path(__file__).parent), values=values).replace(
        "'folder': None", f"'folder': Path({str(run.folder)!r})"
    )
    script = tmp_path / "driver.py"
    script.write_text("from pathlib import Path\n" + code)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children = run.folder / "children.txt"
    deadline = time.monotonic() + 60
    while not (children.exists() and len(children.read_text().split()) == 2):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    for pid in map(int, children.read_text().split()):
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    assert rows(run)["good"]["seeds"] == [0]
    text = report(run)
    assert "### sums-slow-0: interrupted" in text
    assert "Not made yet (algorithm and seeds): good 1; slow 1." in text
    assert f"stopped by signal {int(number)}" in text


def test_two_studies_do_not_share_a_folder(grid: Build, study: Conduct) -> None:
    import fcntl

    run = grid(seeds=[0])
    run.folder.mkdir(parents=True)
    with open(run.folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another study is running"):
            study(run)
    assert study(run) == 0


def test_the_command_refuses_a_typing_error_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unify_posttrain.study", f"folder={tmp_path}/study", "algorithms=[hptt]"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == 1
    assert "error: algorithms: hptt is not in define.algorithms" in done.stderr and "did you mean hpt?" in done.stderr
    assert not (tmp_path / "study" / "runs").exists()
