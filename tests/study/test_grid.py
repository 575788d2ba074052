"""Settings of conf/study.yaml and the overrides of runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from unify_posttrain.config import compose_config
from unify_posttrain.study.grid import SEARCH, Grid, as_overrides, effective_settings

Build = Callable[..., Grid]


def shipped(*overrides: str) -> Grid:
    return Grid.from_config(compose_config(overrides, "study"))


def test_the_shipped_study_composes_real_runs() -> None:
    grid = shipped("algorithms=[grpo,sft]", "tasks=[arithmetic]")
    assert grid.algorithms == ("grpo", "sft")
    run = grid.run("arithmetic", "sft", 2, 1e-4)
    assert run.name == "arithmetic-sft-2"
    values = effective_settings(
        run, [*grid.equal, "fusion.algorithm", "data.seed", "trainer.experiment_name", "trainer.resume_mode"]
    )
    assert values["fusion.algorithm"] == "sft"
    assert values["data.seed"] == 2
    assert values["trainer.experiment_name"] == "arithmetic-sft-2"
    assert values["trainer.resume_mode"] == "disable"
    # sft.yaml asks for batches of 64 and a learning rate of 5e-5: what is common wins.
    assert values["data.train_batch_size"] == 16
    assert values["actor_rollout_ref.actor.optim.lr"] == 1e-4
    assert values["trainer.total_training_steps"] == 20
    assert None not in values.values()


def test_an_algorithms_own_overrides_win_over_common_ones() -> None:
    grid, mini = shipped(), "actor_rollout_ref.actor.ppo_mini_batch_size"
    assert effective_settings(grid.run("arithmetic", "grpo", 0, 1e-4), [mini]) == {mini: 8}
    assert effective_settings(grid.run("arithmetic", "online_sft", 0, 1e-4), [mini]) == {mini: 16}


def test_one_rate_for_every_optimizer_of_the_shipped_study() -> None:
    """A phase or a second optimizer with a rate of its own would be a search that the others did not get."""
    grid = shipped()
    run = grid.run("arithmetic", "sft_then_rl", 0, 3e-4)
    rates = [f"fusion.phases.{phase}.optim.lr" for phase in (0, 1)]
    assert set(effective_settings(run, rates).values()) == {3e-4}
    # neither has a schedule of ours, whose floor would be a rate too
    schedules = [f"fusion.phases.{phase}.fusion.lr_schedule" for phase in (0, 1)]
    assert set(effective_settings(run, schedules).values()) == {None}
    assert effective_settings(run, ["fusion.phases.1.algorithm", "fusion.phases.2"]) == {
        "fusion.phases.1.algorithm": "grpo",
        "fusion.phases.2": None,
    }
    relift = ["fusion.relift.lr", "fusion.relift.sft_data_size"]
    assert list(effective_settings(grid.run("arithmetic", "relift", 0, 3e-4), relift).values()) == [3e-4, 16]


def test_every_default_algorithm_has_its_own_configuration() -> None:
    grid = shipped()
    for label, overrides in grid.defined_algorithms.items():
        assert overrides[0] == f"algorithm={label}"
    assert set(grid.defined_algorithms) >= {"sft_then_rl", "hpt", "hpt_released", "uft", "chord", "ppo"}
    assert grid.baseline == "sft_then_rl"


def test_a_variant_from_the_command_line() -> None:
    grid = shipped('+define.algorithms.hpt2=["algorithm=hpt","trainer.switch_gate=2"]', "algorithms=[hpt2]")
    assert effective_settings(grid.run("arithmetic", "hpt2", 0, 1e-4), ["fusion.hpt.switch_gate"]) == {"fusion.hpt.switch_gate": 2}


def test_overrides_that_do_not_compose_are_named(grid: Build) -> None:
    with pytest.raises(ValueError, match=r"define\.tasks\.sums with define\.algorithms\.good does not compose"):
        effective_settings(grid().run("sums", "good", 0, 0.1), [])


def test_a_rate_of_null_is_the_tasks_own(grid: Build) -> None:
    run = grid(learning_rates=[None]).run("sums", "good", 0, None)
    assert not any("optim.lr" in override for override in run.overrides)


def test_search_gives_every_algorithm_the_same_rates(grid: Build) -> None:
    study = grid(learning_rates=[0.1, 0.2], search_seeds=[7])
    runs = study.search_runs()
    assert {run.purpose for run in runs} == {SEARCH}
    for algorithm in study.algorithms:
        assert [(run.learning_rate, run.seed) for run in runs if run.algorithm == algorithm] == [(0.1, 7), (0.2, 7)]
    assert len({run.name for run in runs}) == len(runs) == 4
    assert grid().search_runs() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithms": ["god"]}, "did you mean good"),
        ({"tasks": ["sum"]}, "did you mean sums"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]"),
        ({"seeds": [0.5]}, r"seeds=\[0.5\]"),
        ({"learning_rates": []}, "learning_rates"),
        ({"learning_rates": [0.1, None]}, "null"),
        ({"learning_rates": [-0.1]}, "learning_rates"),
        ({"learning_rates": [0.1, 0.2], "search_seeds": [0]}, "overlap"),
        ({"baseline": "sft"}, "baseline=sft"),
        ({"confidence": 95}, "confidence=95"),
        ({"parallel": 0}, "parallel=0"),
        ({"timeout_seconds": 0}, "timeout_seconds=0"),
        ({"splits": []}, "splits"),
        ({"speed": 3}, "speed: no such key"),
    ],
)
def test_bad_settings_are_named(grid: Build, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(**values)


def test_a_tree_becomes_overrides_that_read_back_equal() -> None:
    tree = {
        "trainer": {"test_freq": 5, "val_before_train": True, "x": None},
        "text": {"plain": "fsdp2", "number": "1", "word": "null", "odd": 'a "b" \\ c,d', "path": "/a/b.parquet", "end": "a b\\"},
        "list": [1, 2.0e-5, "a", [None]],
    }
    from hydra.core.override_parser.overrides_parser import OverridesParser

    read = OmegaConf.create()
    for override in OverridesParser.create().parse_overrides(list(as_overrides(tree))):
        OmegaConf.update(read, override.key_or_group, override.value())
    assert OmegaConf.to_container(read) == tree
    assert next(as_overrides(tree)) == "trainer.test_freq=5"
