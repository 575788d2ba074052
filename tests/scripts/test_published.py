"""docs/published.md is up to date, and every difference from a published run has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests import published
from unify_posttrain.algorithms import METHODS, RELEASED, build_algorithm
from unify_posttrain.startup.memory import parts_of, totals
from unify_posttrain.startup.memory_checks import check_bucket
from unify_posttrain.startup.memory_plan import actor_shape, rank_plan


@pytest.mark.slow  # composes what every script starts
def test_every_difference_has_a_reason_and_every_reason_a_difference() -> None:
    assert published.faults(published.runs(published.read())) == []


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    """After a change of conf/, exp_scripts/ or docs/published.yaml: python -m tests.published --write."""
    assert published.PAGE.read_text(encoding="utf-8") == published.render(published.read())


def test_faults_are_found() -> None:
    row = published.Row
    rows = (row("a", 1, 2, None), row("b", 1, 1, "because"), row("c", 1, 2, "because"), row("d", 1, 1.0, None))
    run = published.Run("R", "m", "S", "C", rows, ())
    assert [fault.partition(" is ")[0] for fault in published.faults([run])] == ["R: a", "R: b"]


# Scripts that repeat nobody's run: what all have in common, ours on CPU, the first one on a GPU, HPT where it was not published.
OWN = {"common", "cpu_heals", "cpu_study", "smoke_gpu", "hpt_vl"}


def test_every_script_is_compared_with_its_run_or_says_why_not() -> None:
    data = published.read()
    compared = {Path(entry["command"].split()[0]).stem for entry in data["runs"]}
    scripts = {path.stem for path in (published.ROOT / "exp_scripts").glob("*.sh")}
    assert sorted([*compared, *data["unknown"], *OWN]) == sorted(scripts)


def test_all_methods_are_there_and_have_a_script() -> None:
    data = published.read()
    listed = {entry["method"] for entry in data["runs"]}
    assert listed | set(data["unknown"]) == {method.name for method in METHODS if method.paper}
    assert all((published.ROOT / "exp_scripts" / f"{name}.sh").is_file() for name in listed | set(data["unknown"]))
    balances = {method.name for method in RELEASED}
    assert balances <= listed
    assert {entry["method"] for entry in data["runs"] if f"algorithm={entry['method']}_released" in entry["command"]} == balances


@pytest.mark.slow
def test_the_model_of_every_run_is_known_before_it_is_downloaded() -> None:
    """Otherwise nobody plans its memory, and the buffer for its weights is verl's 2048 MiB, at which a run of 7B ends."""
    for entry in published.read()["runs"]:
        config = published.composed(entry["command"], entry.get("step"))
        shape = actor_shape(config)
        assert shape is not None and shape.parameters is not None, entry["title"]
        check_bucket(config)


@pytest.mark.parametrize("model", ["qwen2_5_7b", "llama3_1_8b_instruct"])
def test_rl_that_heals_fits_on_four_gpus(model: str) -> None:
    """A twentieth is left for what the plan does not count. Four ranks hold twice of what eight do."""
    for step in ("sft-0", "ppo-peak-0", "grpo-end-0"):
        config = published.composed(f"exp_scripts/heals.sh common.model={model}", step)
        plan = rank_plan(config, build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True)))
        assert plan is not None and plan.accelerator is not None and plan.actor.shards == 4
        assert max(totals(parts_of(plan)).values()) < 0.95 * plan.accelerator.memory, step
