"""exp_scripts/slurm/sweep_point.py: the runs of a grid, each with a name of its own."""

from __future__ import annotations

import pytest

from exp_scripts.slurm.sweep_point import runs

BASE = ["exp_scripts/hpt.sh", "--dry-run"]


def test_without_several_values_there_is_one_run_as_given() -> None:
    command = [*BASE, "trainer.experiment_name=x", "fusion.phases=[{algorithm: luffy, stall: 3}, {algorithm: hpt}]", "a='b,c'", ""]
    assert runs(command) == [command]


def test_the_grid_counts_with_its_last_key_first() -> None:
    found = runs([*BASE, "trainer.switch_gate=0,1", "task=x", "++fusion.a=[1,2],[3]"])
    kept = [run[:-1] for run in found]
    first = [[*BASE, f"trainer.switch_gate={gate}", "task=x", f"++fusion.a={a}"] for gate in (0, 1) for a in ("[1,2]", "[3]")]
    assert kept == first


def test_names_are_known_by_the_values_and_not_by_the_place() -> None:
    names = {tuple(run[2:-1]): run[-1] for run in runs([*BASE, "a=1,2", "b=3,4"])}
    assert len(set(names.values())) == 4
    assert all(name.startswith("trainer.experiment_name='hpt-") for name in names.values())
    longer = {tuple(run[2:-1]): run[-1] for run in runs([*BASE, "a=0,1,2", "b=3,4"])}
    assert names.items() <= longer.items()


def test_a_given_name_is_in_front() -> None:
    for run in runs(["python", "-m", "unify_posttrain.train", "trainer.experiment_name=gates", "a=range(0,3)"]):
        assert run[:3] == ["python", "-m", "unify_posttrain.train"]
        (name,) = [each for each in run if each.startswith("trainer.experiment_name=")]
        assert name.startswith("trainer.experiment_name='gates-")


def test_an_argument_of_several_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="several lines"):
        runs([*BASE, "a=1\nb=2"])
