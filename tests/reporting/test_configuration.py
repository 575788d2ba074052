"""Settings as rows: what is left out, what counts as a difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from unify_posttrain.reporting.configuration import defaults, flatten, rows
from unify_posttrain.reporting.run import Run


def run(name: str, overrides: tuple[str, ...] = (), **config: object) -> Run:
    return Run(Path(name), name, {"trainer": {"experiment_name": name}, **config}, overrides=overrides)


def test_flatten() -> None:
    node = {
        "a": {"b": 1, "_target_": "x.Y"}, "list": [1, 2], "empty": {}, "phases": [{"lr": 0.1}, {"lr": None}], "text": "1",
        "actor_rollout_ref": {"actor": {"fusion": {"seed": 1}, "lr": True}},
    }  # fmt: skip
    assert dict(flatten(node)) == {
        "a.b": "1", "list": "[1, 2]", "empty": "{}", "phases.0.lr": "0.1", "phases.1.lr": "null", "text": "1",
        "actor_rollout_ref.actor.lr": "true",
    }  # fmt: skip


def test_runs_differ_by_settings_not_by_their_names() -> None:
    """Unless the setting is the name's origin: a run is called after its algorithm by default."""
    named = [run(name, fusion={"algorithm": name}, notes=name) for name in ("hpt", "grpo")]
    assert [row.key for row in rows(named) if row.differs] == ["fusion.algorithm", "notes"]
    both = [run(name, path=f"/runs/{name}/samples", lr=lr, same=1) for name, lr in (("hpt", 1e-4), ("hpt-2", 2e-4))]
    differing = {row.key: row.values for row in rows(both) if row.differs}
    assert differing == {"lr": ("0.0001", "0.0002")}
    only = [run("a", x=1), run("b")]
    assert [(row.values, row.differs) for row in rows(only) if row.key == "x"] == [(("1", "—"), True)]


def test_one_run_is_compared_with_the_defaults_of_its_groups() -> None:
    mine = run("mine", ("algorithm=luffy", "hardware=cpu", "fusion.seed=3"), fusion={"seed": 3, "shaping": {"gamma": 0.1}})
    found = {row.key: row for row in rows([mine])}
    assert (found["fusion.seed"].default, found["fusion.seed"].differs) == ("0", True)
    assert (found["fusion.shaping.gamma"].default, found["fusion.shaping.gamma"].differs) == ("0.1", False)
    assert not found["trainer.experiment_name"].differs


def test_defaults_may_be_unknown() -> None:
    assert defaults(run("no-overrides")) is None
    assert defaults(run("newer", ("algorithm=of_a_later_release",))) is None
    assert all(row.default is None and not row.differs for row in rows([run("no-overrides", a=1)]))


def test_paths_made_absolute_and_numbers_written_otherwise_are_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIFY_HOME", raising=False)
    mine = run("mine", ("algorithm=hpt",), actor_rollout_ref={"actor": {"optim": {"lr": 2.0e-5}}})
    mine.config["trainer"]["run_dir"] = "/home/me/outputs/runs/mine"
    found = {row.key: row for row in rows([mine])}
    assert found["trainer.run_dir"].default == "outputs/runs/mine" and not found["trainer.run_dir"].differs
    assert found["actor_rollout_ref.actor.optim.lr"].default == "2e-05" and not found["actor_rollout_ref.actor.optim.lr"].differs
