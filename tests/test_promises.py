"""Promises of README.md and SECURITY.md that are about all of the source, and that no test of a single part would hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

import unify_posttrain
from unify_posttrain import quickstart
from unify_posttrain.config import compose_config, conf_dir

PACKAGE = Path(unify_posttrain.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# Functions that run what they are given, or what they read. sympy's parsers of plain text evaluate it.
RUNNING = {"eval", "exec", "compile", "__import__", "parse_expr", "sympify", "ExprExtractionConfig", "literal_eval"}
READING = {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "torch.load", "joblib.load", "numpy.load", "np.load"}
# What is trusted: shards of checkpoints, read as tensors alone; what a process and those that it started hand to each other.
# Vectors of pages, read as numbers alone (tests/tasks/vrag/test_retrieval.py).
# math-verify's reader of plain expressions, in which rewards/plain.py stands for sympy's parser (tests/rewards/test_plain.py).
TRUSTED = {
    ("evaluation/merging.py", "torch.load"),
    ("tasks/vrag/retrieval.py", "np.load"),
    ("rewards/worker.py", "pickle.loads"),
    ("rollout/lanes.py", "pickle.loads"),
    ("rewards/equality.py", "ExprExtractionConfig"),
}


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def dangerous(tree: ast.Module) -> set[str]:
    """Functions that run or unpickle, by the names that they are called by."""
    names = {ast.unparse(call.func) for call in calls(tree)}
    methods = {"eval", "compile"}  # of a model, of a regular expression: other things under these names
    return {name for name in names if name in READING | RUNNING or name.rpartition(".")[2] in RUNNING - methods}


def test_nothing_is_evaluated_or_unpickled() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in MODULES
        for name in dangerous(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found - TRUSTED == set()
    assert found >= TRUSTED, "what is no longer read needs no exception"


@pytest.mark.parametrize(
    "source", ["eval(text)", "sympy.parse_expr(t)", "pickle.loads(b)", "torch.load(p)", "ExprExtractionConfig()"]
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert dangerous(ast.parse(source))
    assert not dangerous(ast.parse("model.eval(); re.compile(x); json.loads(y)"))


def test_no_code_of_models_is_trusted() -> None:
    """Neither in the source nor in any choice of conf/."""
    given = [
        f"{path.name}:{call.lineno}"
        for path in MODULES
        for call in calls(ast.parse(path.read_text(encoding="utf-8")))
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code" and isinstance(keyword.value, ast.Constant) and keyword.value.value is not False
    ]
    assert given == []
    for model in sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml")):
        config = compose_config([f"model={model}"])
        keys = [key for key, _ in leaves(OmegaConf.to_container(config, resolve=False)) if key.endswith("trust_remote_code")]
        assert "data.trust_remote_code" in keys and [key for key in keys if OmegaConf.select(config, key)] == [], model


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), node


# The table of the quick start


def test_the_quick_start_prints_the_table_of_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares that README shows, from metrics that have them: 0.135 → 0.915 on hard sums, four fifths demonstrations."""
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    values = {"arithmetic_easy": (1.0, 0.94), "arithmetic_hard": (0.135, 0.915), "arithmetic_ood": (0.0, 0.0)}

    def validation(position: int) -> dict[str, float]:
        return {f"val-core/{source}/acc/mean@1": pair[position] for source, pair in values.items()}

    gate = {"fusion/prompts_sft": 80.0, "fusion/prompts_rl": 20.0, "fusion/solve_rate": 0.14}
    metrics = {0: validation(0), **{step: dict(gate) for step in range(1, 36)}, 36: {**gate, **validation(1)}}
    console = Console(file=StringIO(), width=110)
    quickstart.report(console, {"hpt": metrics}, [])
    rows = [[cell.strip() for cell in line.split("│")] for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert ["", "hard", "13.5%", "91.5% (+78.0%)", ""] in rows and ["", "easy", "100.0%", "94.0% (-6.0%)", ""] in rows
    assert ["", "1-8", "80%", "20%", "14%", ""] in rows
