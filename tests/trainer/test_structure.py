"""The trainer reads as a step: hooks in verl's order, one class that knows verl's trainer, one place that knows its workers."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer

from unify_posttrain.trainer import fusion_trainer, port
from unify_posttrain.trainer.fusion_trainer import FusionTrainer

FOLDER = Path(fusion_trainer.__file__).parent
MODULES = sorted(FOLDER.glob("*.py"))
HOOK = re.compile(r"_fit_\w+")
LINES = 265
# Rooms that the trainer may know; commands, evaluation, reporting and the study are not among them.
LOWER = (
    "backend",
    "algorithms",
    "experience",
    "objective",
    "measures",
    "rewards",
    "runs",
    "startup",
    "rollout",
    "workers",
    "tasks",
    "cpu_compat",
    "devices",
    "redaction",
    "text",
    "trainer",
)
COMMON = ("environment", "episodes", "turns")  # what all environments share; the trainer knows no task


def defined(cls: type) -> list[str]:
    """Methods of a class in the order of its source."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    return [each.name for each in node.body if isinstance(each, ast.FunctionDef)]


def called(function: object) -> list[str]:
    """Hooks that a function calls on self, in the order of its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    found = [(call.lineno, call.attr) for call in calls if HOOK.fullmatch(call.attr)]
    return [name for _, name in sorted(found)]


def test_hooks_stand_in_verls_order() -> None:
    order = called(SeparateRayPPOTrainer.fit_step)
    assert order[0] == "_fit_prepare_step" and order[-1] == "_fit_postprocess_step" and len(order) == len(set(order)) > 15
    hooks = [name for name in defined(FusionTrainer) if HOOK.fullmatch(name)]
    assert set(hooks) <= set(order), "a hook that verl does not call"
    assert hooks == [name for name in order if name in hooks]
    assert len(hooks) > 10


def test_the_step_fits_one_sitting() -> None:
    assert len(Path(fusion_trainer.__file__).read_text().splitlines()) <= LINES


def test_one_class_derives_from_verls_trainer() -> None:
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("Trainer" in ast.unparse(base) for base in node.bases):
                found.append(f"{path.stem}.{node.name}({', '.join(map(ast.unparse, node.bases))})")
    assert found == ["fusion_trainer.FusionTrainer(SeparateRayPPOTrainer)"]


def test_workers_are_reached_through_the_port_alone() -> None:
    """verl's names of worker groups stand where the port is built and nowhere else; nor does anyone else call their methods."""
    for path in MODULES:
        name = r"\bactor_rollout_wg\b|\bref_policy_wg\b|\bcritic_wg\b"
        lines = [line for line in path.read_text().splitlines() if re.search(name, line)]
        if path.stem != "port":
            assert lines == [], path.name
            continue
        source = inspect.getsource(port.WorkerPort.of)
        assert len(lines) == 3 and all(line in source for line in lines), "outside of `of`"
    procedures = re.compile(r"\.(compute_log_prob|compute_ref_log_prob|update_actor|execute_all\w*)\(")
    assert [path.stem for path in MODULES if procedures.search(path.read_text())] == ["port"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_run_downwards(path: Path) -> None:
    """... and no collaborator knows the trainer."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("unify_posttrain."):
            continue
        parts = node.module.split(".")
        assert parts[1] in LOWER, f"{path.name}:{node.lineno}: {node.module}"
        assert parts[1] != "tasks" or parts[2] in COMMON, f"{path.name}:{node.lineno} knows a task: {node.module}"
        if parts[1:] == ["trainer", "fusion_trainer"]:
            assert path.stem == "task_runner", f"{path.name}:{node.lineno} knows the trainer"


def test_the_worker_port_is_an_actor_port() -> None:
    """A Protocol checks nothing by itself: the same methods with the same arguments."""
    wanted = [name for name, value in vars(port.ActorPort).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert {"log_probs", "reference", "update", "update_replay", "start_phase"} <= set(wanted)
    for name in wanted:
        ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (port.WorkerPort, port.ActorPort))
        assert ours == theirs, name
    assert port.WorkerPort(None, None, ranks=3).ranks == 3
