"""The real command: its arguments, its mistakes, and every `what` on tiny models, evaluations and a dump."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tests import forks
from tests.analysis.conftest import low_rank, save_model
from tests.analysis.test_advantages import TURNS, row, write_dump
from tests.analysis.test_forgetting import scores, write_sweep
from tests.evaluation.conftest import write_benchmark
from unify_posttrain.analysis import settings
from unify_posttrain.analyze import CONFIG, run, with_what_key
from unify_posttrain.config import compose_config

ENGINE = (
    "evaluation={engine: hf, dtype: float32, max_response_length: 4, protection: {process: false}, "
    "file: {reward: {path: pkg://unify_posttrain.tasks.arithmetic, name: compute_score}}}"
)


def composed(*arguments: str) -> DictConfig:
    return compose_config(with_what_key(arguments), CONFIG)


def command(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "UNIFY_HOME": str(home)}
    called = [sys.executable, "-m", "unify_posttrain.analyze", *arguments]
    return forks.run(called, capture_output=True, text=True, env=environment, cwd=home, check=False)


# Arguments


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["angles", "base=a"], ["what=angles", "base=a"]),
        (["base=a", "angles"], ["base=a", "what=angles"]),
        (["angles", "recovery"], ["what=angles", "recovery"]),  # Hydra says what it thinks of the second
        (["--cfg", "job", "what=angles"], ["--cfg", "job", "what=angles"]),
        (["-c", "job", "spectrum"], ["-c", "job", "what=spectrum"]),
        (["what=angles", "--multirun"], ["what=angles", "--multirun"]),
        (["layers=0-9,12"], ["layers='0-9,12'"]),
        (["layers=[0-9,12]"], ["layers=[0-9,12]"]),
        (["layers=null"], ["layers=null"]),
        ([r"modules=mlp\.(up|down)_proj"], [r"modules='mlp\.(up|down)_proj'"]),
        (["modules='a b'"], ["modules='a b'"]),
        ([], []),
    ],
)
def test_arguments(given: list[str], expected: list[str]) -> None:
    assert with_what_key(given) == expected


def test_values_arrive_as_they_were_written() -> None:
    config = composed("angles", "layers=0-9,12", r"modules=mlp\.(up|down)_proj\.weight$")
    assert (config.what, config.layers, config.modules) == ("angles", "0-9,12", r"mlp\.(up|down)_proj\.weight$")
    assert str(config.output).endswith("analyses/angles")
    assert composed("layers=[0-3,7]", "layers=5").layers == "5"


# Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what is not set; choose one of recovery, angles, spectrum, advantages, forgetting"),
        (["angels"], "what=angels is unknown; choose one of recovery, angles"),
        (["angles", "tuned=x"], "base=None: give the folder of a model"),
        (["angles", "base=x", "tuned=[]"], r"tuned=\[\]: give the folder of a model"),
        (["angles", "base=x", "tuned=y", "subspaces=[0]"], r"subspaces=\[0\]: give numbers or shares above 0"),
        (["angles", "base=x", "tuned=y", "subspaces=[1.5]"], "subspaces=1.5: give a whole number"),
        (["angles", "base=x", "tuned=y", "modules='('"], "modules=.* is no regular expression"),
        (["angles", "base=x", "tuned=y", "layers=a"], "layers=a: 'a' is no number or range"),
        (["angles", "base=x", "tuned=y", "device=tpu"], "device=tpu is unknown; choose one of auto, cpu, cuda"),
        (["angles", "base=x", "tuned=y", "device=cuda:99"], "device=cuda:99 is not there"),
        (["angles", "base=x", "tuned=y", "precision=bfloat16"], "precision=bfloat16 is unknown; choose one of float32, float64"),
        (["angles", "base=x", "tuned=y", "rank_gap=0"], "rank_gap=0 must be a number between 0 and 1"),
        (["angles", "base=x", "tuned=y", "factor=0.5"], "factor=0.5 must be a number of at least 1"),
        (["spectrum", "base=x", "tuned=y", "bins=0"], "bins=0 must be a whole number of at least 1"),
        (["recovery", "base=x", "tuned=[y,z]"], "recovery restores one model"),
        (["recovery", "base=x", "tuned=y", "mode=[vectors]"], "mode=vectors is unknown; choose one of vector, direction, values"),
        (["recovery", "base=x", "tuned=y", "mode=[]"], r"mode=\[\] restores nothing"),
        (["recovery", "base=x", "tuned=y", "tail=2"], "tail=2: mode=aligned restores the top alone; set tail=0, or mode= without"),
        (["recovery", "base=x", "tuned=y", "top=0"], "top=0, tail=0 restore nothing"),
        (["recovery", "base=x", "tuned=y", "top=[0.1,-1]"], "top=-1: give a whole number of indices, or a share"),
        (["recovery", "base=x", "tuned=y", "top=2.0"], "top=2.0: give a whole number"),
        (["recovery", "base=/none", "tuned=/none"], "base=/none is no folder; give a model's folder"),
        (["recovery", "base=x", "tuned=y", "evaluate=[nothing]"], "benchmarks: 'nothing' is unknown; choose among"),
        (
            ["recovery", "base=x", "tuned=y", "evaluate=[math500]", "evaluation={m: 3}"],
            r"evaluation=.*'m' is not in.*conf/evaluate.yaml",
        ),
        (
            ["recovery", "base=x", "tuned=y", "evaluate=[math500]", "evaluation=[3]"],
            r"evaluation=\[3\]: .*give keys of conf/evaluate",
        ),
        (["advantages"], "run is not set; give the folder of a run with a rollout dump"),
        (["advantages", "run=/none"], "run=/none is no folder"),
        (["advantages", "run=/none", "credit=token"], "credit=token is unknown; choose one of trajectory, turn"),
        (["forgetting"], "sft=None: give the evaluation of a fine-tuning run"),
        (["forgetting", "sft=a", "rl=[b]"], r"rl=b: the step of fine-tuning that it started from is unknown"),
        (["forgetting", "sft=[a,b]", "rl=[c-1,d-1]"], "sft= lists 2 seeds; give as many lists"),
        (["forgetting", "sft=a", "select=quarter"], "select=quarter is unknown; choose one of half, none"),
        (["forgetting", "sft=a", "statistics.confidence=2"], "statistics.confidence=2"),
        (["forgetting", "sft=a", "seed=-1"], "seed=-1 must be a whole number of at least 0"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        list(run(composed(*arguments, f"output={tmp_path}")))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_shares_and_numbers_are_told_apart() -> None:
    recovery = settings.recovery(composed("recovery", "base=a", "tuned=b", "top=[1,1.0,0.1,1]", "mode=[values,values]"))
    assert [(type(top), top) for top in recovery.tops] == [(int, 1), (float, 1.0), (float, 0.1)] and recovery.modes == ("values",)


def test_labels_of_models() -> None:
    given = ["/x/step_1", "/y/step_1", "/z/a b"]
    comparison = settings.comparison(composed("angles", "base=a", f"tuned=[{','.join(given[:2])},'{given[2]}']"))
    assert {label: str(folder) for label, folder in comparison.tuned.items()} == dict(
        zip(["step_1", "step_1-2", "a_b"], given, strict=True)
    )
    named = settings.comparison(composed("angles", "base=a", "tuned={first: /x, second: /y}"))
    assert list(named.tuned) == ["first", "second"]


def test_credit_is_the_runs(tmp_path: Path) -> None:
    config = composed("advantages")
    assert settings.credit_of(config, tmp_path) == "trajectory"
    (tmp_path / "config.yaml").write_text("environment: null\n")
    assert settings.credit_of(config, tmp_path) == "trajectory"
    (tmp_path / "config.yaml").write_text("environment: {credit: turn}\n")
    assert settings.credit_of(config, tmp_path) == "turn"
    assert settings.credit_of(composed("advantages", "credit=trajectory"), tmp_path) == "trajectory"


def test_turns_of_a_run(tmp_path: Path) -> None:
    write_dump(tmp_path / "rollouts", {1: [row([1.0, 0.0, -1.0], *TURNS)]})
    (tmp_path / "config.yaml").write_text("environment: {credit: turn}\n")
    lines = list(run(composed("advantages", f"run={tmp_path}", f"output={tmp_path / 'out'}")))
    assert (
        lines[0].startswith("One value per turn.")
        and json.loads((tmp_path / "out" / "advantages.json").read_text())["steps"][0]["values"] == 2
    )


def test_the_plan(models: tuple[Path, Path], tmp_path: Path) -> None:
    pair = [f"base={models[0]}", f"tuned={models[1]}", f"output={tmp_path}", "dry_run=true", "precision=float64"]
    lines = list(run(composed("recovery", *pair, "top=[0.5]", "layers=0")))
    assert lines[0] == "7 matrices, from 8x16 to 24x16; 3 decompositions of each"
    assert "9 restored models" in lines[1] and "float64 on cpu" in lines[2]
    assert next(run(composed("angles", *pair))).startswith("14 matrices")
    assert list(tmp_path.iterdir()) == []


# The command itself


@pytest.mark.slow
def test_two_saved_models_through_the_real_command(models: tuple[Path, Path], tmp_path: Path) -> None:
    pair = (f"base={models[0]}", f"tuned={models[1]}")
    for what in ("angles", "spectrum"):
        done = command(what, *pair, "layers=0,1", home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "random subspaces stand at" in done.stdout or "noise of the same norm" in done.stdout
        assert f"{what}.md" in done.stdout
        assert json.loads((tmp_path / "analyses" / what / f"{what}.json").read_text())["summary"]["tuned"]["matrices"] == 14
    done = command("recovery", *pair, "top=[0.25]", "mode=[direction,aligned]", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Controls, by what they leave" in done.stdout and "evaluate=[BENCHMARK,…]" in done.stdout
    refused = command("recovery", *pair, "top=[0.5]", home=tmp_path)
    assert refused.returncode == 1 and refused.stderr.strip().splitlines()[-1].startswith("error: output=")
    unknown = command("angles", "bse=x", home=tmp_path)
    assert unknown.returncode == 1 and "did you mean base" in unknown.stderr and "Traceback" not in unknown.stderr


@pytest.mark.slow
def test_restored_models_are_evaluated(tmp_path: Path) -> None:
    """Both families are enough for restoring (test_recovery.py); here the engine of transformers generates with every folder."""
    pair = save_model(tmp_path / "base"), save_model(tmp_path / "tuned", low_rank)
    file = write_benchmark(tmp_path / "sums.parquet", [("sums", "1+2=", "3"), ("sums", "2+2=", "4")])
    done = command(
        "recovery", f"base={pair[0]}", f"tuned={pair[1]}", "top=[0.5]", "mode=[aligned]", f"evaluate=[{file}]",
        ENGINE, home=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "analyses" / "recovery" / "recovery.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["tuned", "aligned_top0.5", "interpolate_top0.5", "drop_top0.5", "base"]
    assert {row["accuracy"]["sums"]["mean"] for row in rows} <= {0.0, 0.5, 1.0} and "best control" in done.stdout
    assert (tmp_path / "analyses" / "recovery" / "evaluation" / "results.json").is_file()


@pytest.mark.slow
def test_evaluations_and_a_dump_through_the_real_command(tmp_path: Path) -> None:
    write_sweep(tmp_path / "evaluations" / "sft", {"x_ood": {1: scores(180), 2: scores(90)}})
    write_sweep(tmp_path / "evaluations" / "rl-2", {"x_ood": {5: scores(150)}})
    done = command("forgetting", "sft=sft", "rl=[rl-2]", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "**Forgetting: yes.**" in done.stdout and "**Healed: yes.**" in done.stdout
    write_dump(tmp_path / "run" / "rollouts", {1: [row(1.0, ("on", "a")), row(-1.0, ("on", "b"))]})
    done = command("advantages", "run=run", home=tmp_path)
    assert done.returncode == 0 and "In 0.0 % of 1 groups" in done.stdout, done.stderr


def test_composing_imports_nothing_heavy() -> None:
    heavy = "('torch', 'verl', 'ray', 'matplotlib')"
    code = f"import sys, unify_posttrain.analyze\nsys.exit(str([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
