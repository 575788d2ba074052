"""Peak, forgetting, recovery and window: the published series, chance, halves, and evaluations as they lie on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unify_posttrain.analysis.forgetting import analyse, halves, peak_of, shared, summarise, told_apart, window_of
from unify_posttrain.analysis.forgetting_report import Forgetting, over_seeds, report, verdict
from unify_posttrain.analysis.sweeps import starts
from unify_posttrain.measures.intervals import wilson
from unify_posttrain.measures.statistics import Bootstrap

HOW = Bootstrap(confidence=0.95, resamples=500, seed=0)
# Published, in %: fine-tuning at a step, and the end of the RL run that started there.
PUBLISHED = {
    0: (0, 0), 140: (17.52, 8.55), 300: (16.24, 8.12), 400: (11.54, 10.26), 500: (10.68, 15.38), 600: (11.54, 13.25),
    700: (10.26, 14.10), 800: (5.98, 9.40), 900: (5.13, 12.39), 1000: (5.98, 11.54), 1100: (6.92, 16.24), 1200: (4.70, 4.70),
}  # fmt: skip


# Shares


def test_the_published_series() -> None:
    sft, rl = ({step: pair[place] for step, pair in PUBLISHED.items()} for place in (0, 1))
    found = summarise(sft, rl, end=1100)
    assert (found.peak_step, found.peak, found.end_step, found.end) == (140, 17.52, 1100, 6.92)
    assert found.forgotten == pytest.approx(10.60)
    assert found.recovery[1100] == pytest.approx(0.879, abs=5e-4)  # (16.24 - 6.92) / 10.60
    assert found.window == (500, 1100)
    assert found.gains[140] == pytest.approx(8.55 - 17.52)
    assert summarise(sft, rl).end_step == 1200


def test_the_earliest_of_equals() -> None:
    assert peak_of({30: 0.5, 10: 0.5, 20: 0.4}) == 10
    assert window_of({1: 1.0, 2: 0.0, 3: 1.0, 4: 0.0}) == (1, 1)
    assert window_of({1: 0.0, 2: -1.0}) is None


def test_nothing_forgotten_has_no_recovery() -> None:
    found = summarise({0: 1.0, 10: 2.0}, {10: 3.0, 5: 1.0})
    assert (found.forgotten, found.recovery, found.gains) == (0.0, {5: None, 10: None}, {10: 1.0})


def test_ends_that_were_not_evaluated_are_refused() -> None:
    with pytest.raises(ValueError, match=r"end=7 is no evaluated checkpoint; choose one of 0, 10"):
        summarise({0: 1.0, 10: 2.0}, {}, end=7)
    with pytest.raises(ValueError, match="steps=all"):
        summarise({}, {})


@pytest.mark.parametrize(
    ("solved", "n", "low", "high"),
    [(41, 234, 13.19, 22.91), (38, 234, 12.07, 21.50), (16, 234, 4.25, 10.82), (0, 234, 0, 1.62), (9, 48, 10.19, 31.94)],
)
def test_wilson(solved: int, n: int, low: float, high: float) -> None:
    assert [100 * end for end in wilson(solved, n, 0.95)] == pytest.approx([low, high], abs=0.005)


@pytest.mark.parametrize(("solved", "n", "confidence"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_wilson_refuses(solved: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="wilson"):
        wilson(solved, n, confidence)


# Scores


def scores(solved: int, of: int = 200, shift: int = 0) -> dict[int, float]:
    """`solved` problems of `of` right, beginning at `shift`."""
    return {row: float((row - shift) % of < solved) for row in range(of)}


def test_forgotten_and_healed() -> None:
    sft = {10: scores(160), 20: scores(180), 400: scores(80)}
    found = analyse(sft, {400: scores(150)}, "none", HOW)
    assert (found["peak_step"], found["forgot"], found["healed"], found["best_start"]) == (20, True, "yes", 400)
    assert found["forgotten"]["mean"] == pytest.approx(0.5) and found["forgotten"]["low"] > 0.4
    assert found["recovery"][400] == pytest.approx(0.7)


def test_no_forgetting_unless_the_interval_excludes_zero() -> None:
    sft = {10: scores(101), 20: scores(100, shift=50)}  # one problem better, a hundred exchanged
    found = analyse(sft, {20: scores(120)}, "none", HOW)
    assert found["forgotten"]["mean"] > 0 and not found["forgot"]
    assert found["healed"] is None and found["recovery"] == {20: None}
    assert "**Forgetting: no.**" in " ".join(verdict({**found, "ood": "x_ood", "sft": "a"}))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, "yes"), (-0.2, -0.1, "no"), (-0.1, 0.1, "not told apart"), (None, None, "not told apart")],
)
def test_three_answers(low: float | None, high: float | None, expected: str) -> None:
    assert told_apart({"low": low, "high": high}) == expected


def test_a_run_that_falls_further_is_said() -> None:
    found = analyse({10: scores(180), 20: scores(120)}, {20: scores(60)}, "none", HOW)
    assert found["healed"] == "no" and found["recovery"][20] == pytest.approx(-1.0)


def test_halves_are_disjoint_whole_and_repeatable() -> None:
    first, second = halves(range(101), 0)
    assert (len(first), len(second)) == (50, 51) and sorted(first + second) == list(range(101))
    assert (first, second) == halves(list(reversed(range(101))), 0) != halves(range(101), 1)


def test_the_peak_of_noise_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    """Twenty checkpoints of the same accuracy: the highest is above it, its other half is not; the papers' way finds a loss."""
    rng = np.random.default_rng(0)
    lost: dict[str, list[float]] = {"half": [], "none": []}
    for _ in range(30):
        sft = {step: dict(enumerate(rng.integers(0, 2, 100).astype(float))) for step in range(20)}
        for select, values in lost.items():
            found = analyse(sft, {}, select, Bootstrap(confidence=0.95, resamples=20, seed=1))
            values.append(found["forgotten"]["mean"])
    assert np.mean(lost["none"]) > 0.07
    assert abs(np.mean(lost["half"])) < 0.04


def test_choices_are_made_on_the_first_half_alone() -> None:
    chosen, reported = halves(range(100), HOW.seed)
    flat = dict.fromkeys(range(100), 0.0)
    sft = {1: {**flat, **dict.fromkeys(chosen, 1.0)}, 2: {**flat, **dict.fromkeys(reported, 1.0)}, 3: flat}
    rl = {1: sft[1], 2: sft[2]}
    found = analyse(sft, rl, "half", HOW)
    assert (found["peak_step"], found["best_start"], found["peak"]) == (1, 1, 0.0)
    assert found["problems"] == {"chosen_on": 50, "reported_on": 50}


def test_differences_need_problems_in_common() -> None:
    assert shared([{1: {0: 1.0, 1: 0.0, 2: 0.0}}, {5: {1: 1.0, 2: 1.0, 3: 0.0}}]) == [1, 2]
    with pytest.raises(ValueError, match="fewer than two problems"):
        shared([{1: {0: 1.0}}, {1: {1: 1.0}}])


# Evaluations on disk


def write_sweep(folder: Path, curves: Mapping[str, Mapping[int, Mapping[int, float]]], digest: str = "d") -> Path:
    """What `evaluate` leaves: benchmark -> step -> scores."""
    steps = sorted({step for curve in curves.values() for step in curve})
    for benchmark, curve in curves.items():
        for step, values in curve.items():
            place = folder / "samples" / f"step_{step}" / benchmark
            place.mkdir(parents=True)
            (place / "settings.json").write_text(json.dumps({"benchmark": digest}))
            lines = [{"row": row, "number": 0, "correct": int(value), "gold_ok": 1} for row, value in values.items()]
            (place / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = [{"label": f"step_{step}", "path": "run", "step": step} for step in steps]
    content = {"models": models, "settings": {"benchmarks": {name: {} for name in curves}}}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def settings(tmp_path: Path, seeds: Sequence[tuple[str, Mapping[int, str]]], **changed: Any) -> Forgetting:
    given = {"id": None, "ood": None, "select": "none", "end": None, "overwrite": False, **changed}
    return Forgetting(seeds=tuple(seeds), evaluations=tmp_path, how=HOW, output=tmp_path / "out", **given)


def test_a_report_of_evaluations(tmp_path: Path) -> None:
    curves = {
        "gp_ood": {0: scores(0), 20: scores(180), 400: scores(80)},
        "gp_id": {0: scores(0), 20: scores(150), 400: scores(199)},
    }
    write_sweep(tmp_path / "sft", curves)
    write_sweep(tmp_path / "rl-400", {"gp_ood": {10: scores(1), 50: scores(150)}, "gp_id": {10: scores(1), 50: scores(200)}})
    results = report(settings(tmp_path, [("sft", {400: "rl-400"})]))
    (run,) = results["seeds"]
    assert (run["ood"], run["id_benchmark"], run["healed"], run["recovery"][400]) == ("gp_ood", "gp_id", "yes", pytest.approx(0.7))
    assert run["id"]["rl"][400]["mean"] == 1.0
    text = (tmp_path / "out" / "forgetting.md").read_text()
    for expected in ("**Forgetting: yes.**", "**Healed: yes.**", "select: none", "no test", "Wilson"):
        assert expected in text
    assert json.loads((tmp_path / "out" / "forgetting.json").read_text())["seeds"][0]["peak_step"] == 20
    assert (tmp_path / "out" / "forgetting.png").stat().st_size > 1000


def test_what_evaluations_say_of_answers_stands_in_the_report(tmp_path: Path) -> None:
    """Episodes and losses of results.json, and the published row of the same benchmark."""
    write_sweep(tmp_path / "sft", {"gp_ood": {20: scores(180), 400: scores(80)}})
    write_sweep(tmp_path / "rl-400", {"gp_ood": {50: scores(150)}})
    outcomes = {"illegal_formula": 0.25, "no_solution": 0.5}
    episodes = {"first_acc": 0.2, "turns": 3.5, "other_rule": 0.125, "outcomes": outcomes}
    for name, step, part in (
        ("sft", 20, {"episodes": episodes, "loss": {"per_token": 0.0312}}),
        ("rl-400", 50, {"loss": {"per_token": 0.5}}),
    ):
        path = tmp_path / name / "results.json"
        content = json.loads(path.read_text())
        for model in content["models"]:
            model["sources"] = [{"benchmark": "gp_ood", **part}] if model["step"] == step else []
        path.write_text(json.dumps(content))
    published = (
        {
            "benchmark": "gp_ood",
            "model": "Big",
            "origin": "a paper",
            "peak": 17.52,
            "end": 6.92,
            "rl": 16.24,
            "id": [24.79, 68.38, 71.79],
        },
        {"benchmark": "nav_ood", "model": "Other", "origin": "a paper", "peak": 2.0, "end": 1.0, "rl": 1.0, "id": [1.0, 1.0, 1.0]},
    )
    results = report(settings(tmp_path, [("sft", {400: "rl-400"})], published=published))
    found = results["seeds"][0]["answers"]
    assert found["sft"] == {20: {"first_acc": 0.2, "turns": 3.5, "other_rule": 0.125, "unreadable": 0.25, "loss": 0.0312}}
    assert found["rl"] == {400: {"first_acc": None, "turns": None, "other_rule": None, "unreadable": None, "loss": 0.5}}
    text = (tmp_path / "out" / "forgetting.md").read_text()
    assert "| SFT 20 | 20.0 | 12.5 | 25.0 | 3.50 | 0.0312 |" in text and "| end of RL from 400 | - | - | - | - | 0.5000 |" in text
    assert "| Big | a paper | 17.52 | 6.92 | 16.24 | 0.88 |" in text and "Other" not in text


def test_seeds_have_an_interval(tmp_path: Path) -> None:
    for seed, solved in (("a", 180), ("b", 170), ("c", 175)):
        write_sweep(tmp_path / seed, {"x_ood": {1: scores(solved), 2: scores(90)}})
        write_sweep(tmp_path / f"{seed}-2", {"x_ood": {5: scores(120)}})
    results = report(settings(tmp_path, [(seed, {2: f"{seed}-2"}) for seed in "abc"]))
    assert results["over_seeds"]["forgotten"]["mean"] == pytest.approx(0.425)
    assert results["over_seeds"]["forgotten"]["half_width"] > 0 and results["over_seeds"]["recovery"]["n"] == 3
    assert over_seeds(results["seeds"][:1], 0.95)["peak"]["half_width"] is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ood": "none"}, "ood=none was not evaluated for every run; choose one of x_ood"),
        ({"end": 7}, "end=7 is no evaluated checkpoint"),
        ({"id": "gp_id"}, "id=gp_id was not evaluated"),
    ],
)
def test_settings_that_do_not_fit_the_evaluations(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    write_sweep(tmp_path / "sft", {"x_ood": {1: scores(180), 2: scores(90)}})
    with pytest.raises(ValueError, match=message):
        report(settings(tmp_path, [("sft", {})], **changed))


def test_evaluations_that_cannot_be_compared(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sft", {"x_ood": {1: scores(180), 2: scores(90)}, "y_ood": {1: scores(1), 2: scores(1)}})
    write_sweep(tmp_path / "rl-2", {"x_ood": {5: scores(120)}}, digest="other")
    with pytest.raises(ValueError, match="different files"):
        report(settings(tmp_path, [("sft", {2: "rl-2"})]))
    with pytest.raises(ValueError, match="2 end in _ood"):
        report(settings(tmp_path, [("sft", {})]))
    with pytest.raises(ValueError, match=r"sft=gone: neither .* python -m unify_posttrain\.evaluate"):
        report(settings(tmp_path, [("gone", {})]))


def test_damaged_evaluations_name_the_file(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sft", {"x_ood": {1: scores(18), 2: scores(9)}})
    samples = tmp_path / "sft" / "samples" / "step_1" / "x_ood" / "samples.jsonl"
    samples.write_text('{"row": 1}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 1 is damaged"):
        report(settings(tmp_path, [("sft", {})]))
    samples.unlink()
    with pytest.raises(ValueError, match="run the evaluation again"):
        report(settings(tmp_path, [("sft", {})]))


def test_labels_of_results_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sft", {"x_ood": {1: scores(18), 2: scores(9)}})
    results = tmp_path / "sft" / "results.json"
    results.write_text(results.read_text().replace("step_1", "../../elsewhere"))
    with pytest.raises(ValueError, match="outside of"):
        report(settings(tmp_path, [("sft", {})]))


def test_where_rl_runs_started() -> None:
    assert starts(["gp-ppo-500", "gp-ppo-1100"]) == {500: "gp-ppo-500", 1100: "gp-ppo-1100"}
    assert starts({100: "a"}) == {100: "a"} and starts(None) == {} and starts("x-5") == {5: "x-5"}
    with pytest.raises(ValueError, match=r"rl=gp-ppo: .* write rl={STEP: gp-ppo}"):
        starts(["gp-ppo"])
    with pytest.raises(ValueError, match="two runs started from step 5"):
        starts(["a-5", "b-5"])
