"""Imports run downwards, and what is an algorithm's own stands in the algorithm: both are read off the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import unify_posttrain
from unify_posttrain.algorithms import ALGORITHMS

PACKAGE = Path(unify_posttrain.__file__).parent
NAME = PACKAGE.name
COMMANDS = ("train", "prepare", "export", "evaluate", "report", "explain", "quickstart", "doctor", "grade", "analyze")
# Rooms (folders and single modules) from low to high. A module imports its own room and rooms of lower layers, nothing else: two
# rooms of one layer do not know each other, commands excepted.
LAYERS = (
    ("text", "redaction", "devices", "mortal"),
    ("output", "chat"),
    ("objective", "experience", "typos", "sweeps", "cpu_compat", "paths", "untrusted", "hydra_records", "hydra_mode"),
    ("backend",),
    ("phase_files", "shapes", "released_keys"),
    ("config",),
    ("algorithms", "provenance"),
    ("measures", "rewards"),
    ("preparation",),
    ("tasks",),
    ("runs", "rollout"),
    ("startup", "workers"),
    ("trainer", "doctoring"),
    ("evaluation", "study", "reporting", "analysis"),
    ("auditing", "healing"),
    COMMANDS,
)
# Rooms that know even less than their layer would let them.
KNOWN: dict[str, set[str]] = {
    "objective": set(),
    "experience": {"chat"},  # where prompt and target meet: text, as everywhere
    "measures": set(),
    "rewards": {"mortal"},
    "algorithms": {"objective", "experience", "config"},  # the last for the arithmetic of episodes
    "output": {"text", "redaction"},
    "backend": {"cpu_compat"},
    "preparation": {"rewards", "untrusted", "output", "redaction", "chat"},
    # shapes: what stands in a model's folder; the last two for the retrieval server, which is a command
    "tasks": {"preparation", "untrusted", "shapes", "config", "output"},
    "runs": {"sweeps", "paths", "output", "redaction", "backend"},  # the last for spellings of settings, which need no verl
    "rollout": {
        "chat",
        "cpu_compat",
        "mortal",
        "untrusted",
        "experience",
        "rewards",
        "tasks",
        "backend",
    },  # before the last: what episodes are
    "analysis": {"measures", "runs", "untrusted", "output"},  # files, statistics and texts
}
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
BESIDE_TRAINING = ("evaluation", "study", "reporting", "auditing", "analysis", "healing")  # they read what a run has left behind
TRAINING = ("startup", "workers", "trainer")
HEAVY = ("verl", "ray", "vllm")
PURE = ("objective", "experience", "algorithms", "rewards", "tasks", "measures", "study", "analysis", "healing")
ENGINE_ROOMS = {"backend", "rollout", "startup", "workers", "trainer", "evaluation"}  # the others run without verl, ray and vllm

Import = tuple[str, str]  # (what, file:line)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imports(path: Path) -> Iterator[Import]:
    """Every module that a file imports, wherever in it: absolute dotted names."""
    inside = [NAME, *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(parsed(path)):
        where = f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from ((alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*inside[: len(inside) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else node.module or ""
            yield from ((f"{base}.{alias.name}" if base == NAME else base, where) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((arg.value, where) for arg in node.args[:1] if isinstance(arg, ast.Constant))


@cache
def own_imports(path: Path) -> tuple[Import, ...]:
    """(room, file:line) of imports of other rooms; `__version__` belongs to none."""
    found = []
    for name, where in imports(path):
        head, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        if head == NAME and room != room_of(path) and room != "__version__":
            assert room, f"{where} imports the whole package"
            found.append((room, where))
    return tuple(found)


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in MODULES} == set(LEVEL)
    assert sum(map(len, LAYERS)) == len(LEVEL), "a room stands in two layers"


@pytest.mark.parametrize("room", sorted(set(LEVEL) - set(COMMANDS)))
def test_imports_run_downwards(room: str) -> None:
    found = [each for path in MODULES if room_of(path) == room for each in own_imports(path)]
    assert [f"{where}: {room} -> {other}" for other, where in found if LEVEL[other] >= LEVEL[room]] == []
    if room in KNOWN:
        assert [f"{where}: {room} -> {other}" for other, where in found if other not in KNOWN[room]] == []
    if room in BESIDE_TRAINING:
        assert [where for other, where in found if other in TRAINING] == []


@pytest.mark.parametrize("room", COMMANDS)
def test_commands_are_known_to_commands_alone(room: str) -> None:
    users = {where.partition(":")[0] for path in MODULES for other, where in own_imports(path) if other == room}
    assert users <= {f"{NAME}/{command}.py" for command in COMMANDS}


def test_pure_rooms_know_neither_verl_nor_ray_nor_vllm() -> None:
    found = {room_of(path): where for path in MODULES for name, where in imports(path) if name.partition(".")[0] in HEAVY}
    assert not set(found) & set(PURE), found
    assert set(found) == ENGINE_ROOMS, "a room that lost or gained an engine is to be listed"


def test_the_reader_of_imports_sees_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import verl.trainer, os
from . import gate
from ..objective import Term
from unify_posttrain import cpu_compat
def late():
    from ray.util import placement_group
    importlib.import_module("vllm.engine")
"""
    monkeypatch.setattr(f"{__name__}.parsed", lambda path: ast.parse(source))
    assert [name for name, _ in imports(PACKAGE / "experience" / "rules.py")] == [
        "verl.trainer", "os", f"{NAME}.experience", f"{NAME}.objective", f"{NAME}.cpu_compat", "ray.util", "vllm.engine",
    ]  # fmt: skip


# --- nothing of an algorithm outside of it ---------------------------------------------------------------------------


NODES = {node for cls in ALGORITHMS.values() for node in cls.nodes}
OWN_METRICS = {name for cls in ALGORITHMS.values() for name in cls.own_metrics}
BLIND = [
    *(
        path
        for path in MODULES
        if room_of(path) in ("trainer", "workers", "rollout", "runs", "startup", "doctoring", "measures", "backend")
    ),
    *(PACKAGE / "algorithms" / name for name in ("base.py", "parts.py")),
]
# Words that name an algorithm and something else as well, where they mean the other thing.
OTHER_MEANINGS = {
    "startup/checks.py": {"grpo"},  # the value of algorithm.adv_estimator that a message recommends
    "startup/critic_checks.py": {"grpo"},
    "startup/target_checks.py": {"grpo"},  # `algorithm=grpo`, recommended to whoever has no demonstrations
    "startup/reward_checks.py": {"dapo"},  # verl's reward manager
    "workers/reward_manager.py": {"dapo"},
    "algorithms/base.py": {"ppo"},  # fusion.clip=ppo
    "algorithms/parts.py": {"ppo", "grpo", "sft", "dft", "psft"},  # fusion.clip, adv_estimator, the term, fusion.sft_form
    "trainer/replayer.py": {"sft"},  # the term
    "runs/progress.py": {"sft"},  # the zone
}
GENERAL = {"phases", "prefix"}  # nodes whose names are words: every run has phases, a rollout may have a prefix


def documentation(tree: ast.Module) -> set[int]:
    """The docstrings of a module."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = (node.body[0] for node in ast.walk(tree) if isinstance(node, holders) and node.body)
    return {id(each.value) for each in first if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)}


def texts(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """String constants of a module, docstrings left out, with their lines."""
    skipped = documentation(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value, node.lineno


def of_an_algorithm(tree: ast.Module, allowed: set[str]) -> list[str]:
    """What a module knows of a single algorithm: `line: what`."""
    found = []
    for text, line in texts(tree):
        words = set(re.findall(r"[\w/]+", text))
        keys = {node for node in NODES if re.search(rf"(^|\.){node}(\.|$)|fusion\.{node}\b", text) and node != text}
        named = {each for each in words & (set(ALGORITHMS) | NODES - GENERAL) if each not in allowed}
        found += [f"{line}: {each!r} in {text[:60]!r}" for each in sorted(keys | named | words & OWN_METRICS)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in NODES:
            of_settings = ast.unparse(node.value).rpartition(".")[2] in ("fusion", "own")
            if of_settings or node.attr not in GENERAL:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and re.match(rf"{NAME}\.algorithms\.({'|'.join(ALGORITHMS)})$", node.module or ""):
            found.append(f"{node.lineno}: imports {node.module}")
    return found


@pytest.mark.parametrize("path", BLIND, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_algorithm_is_known_by_name_node_or_metric(path: Path) -> None:
    assert of_an_algorithm(parsed(path), OTHER_MEANINGS.get(str(path.relative_to(PACKAGE)), set())) == []


def test_every_other_meaning_is_still_in_use() -> None:
    for name, words in OTHER_MEANINGS.items():
        used = {word for text, _ in texts(parsed(PACKAGE / name)) for word in re.findall(r"[\w/]+", text)}
        assert words <= used, name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 'hpt'", True),
        ("x = f'algorithm=luffy {y}'", True),
        ("x = 'fusion.prefix.steps'", True),
        ("x = select(config, 'fusion.phases')", True),
        ("x = settings['chord']", True),
        ("x = config.fusion.prefix", True),
        ("x = algorithm.hpt", True),
        ("x = 'fusion/kl_seq'", True),
        ("from unify_posttrain.algorithms.srft import SRFT", True),
        ("x = fusion.sft_loss_coef", True),
        ("def f():\n    '''HPT is hpt.'''", False),
        ("x = algorithm.phases", False),
        ("x = self.prefix", False),
        ("x = 'a response prefix of 3 tokens'", False),
        ("x = 'actor_rollout_ref.actor.ppo_mini_batch_size'", False),
        ("x = 'fusion/sft_loss'", False),
        ("from unify_posttrain.algorithms import Algorithm", False),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, found: bool) -> None:
    assert bool(of_an_algorithm(ast.parse(source), set())) == found
