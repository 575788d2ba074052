"""Versions of verl differ in `backend` and nowhere else: both modules define the same names, nobody else asks for the version."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

import unify_posttrain
from unify_posttrain.backend import seams
from unify_posttrain.config import compose_config
from unify_posttrain.runs.continuity import settings

PACKAGE = Path(unify_posttrain.__file__).parent
FOLDER = PACKAGE / "backend"
# What moved, went or came between the versions: module -> who may import it.
MOVED = {
    "verl.trainer.main_ppo": {"backend/verl07.py"},
    "verl.trainer.main_ppo_v0": {"backend/verl09.py"},
    "verl.plugin.platform": {"backend/plugin.py"},
    "verl.utils.chat_template": set(),
    "verl.utils.tokenizer.chat_template": set(),
    "verl.workers.llm_server": set(),
    # The legacy backend, which 0.7.1 alone has.
    "verl.workers.actor": {"workers/forward.py"},
    "verl.workers.critic": {"workers/fusion_critic.py"},
    "verl.workers.fsdp_workers": {"workers/fusion_critic.py", "workers/fusion_worker.py"},
}


def public(path: Path) -> set[str]:
    """What a module defines at its top."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def test_both_versions_define_what_is_asked_for() -> None:
    asked = set(seams.__all__) - {"ENGINE", "LEGACY", "TESTED", "installed"}
    assert asked <= public(FOLDER / "verl07.py")
    assert asked <= public(FOLDER / "verl09.py")
    assert all(hasattr(seams, name) for name in seams.__all__)


@pytest.mark.parametrize("module", sorted(MOVED))
def test_names_that_moved_are_imported_in_one_place(module: str) -> None:
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [node.module] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if module in named:
                users.add(str(path.relative_to(PACKAGE)))
    assert users == MOVED[module]


def test_a_platform_for_the_cpu_where_verl_asks_for_one() -> None:
    """Entry point and check agree; verl 0.7.1 has no platforms and needs none."""
    from unify_posttrain.backend import plugin

    assert seams.missing_part() is None
    if find_spec("verl.plugin") is None:
        plugin.install()
        return
    from verl.plugin.platform import get_platform

    platform = get_platform()
    assert (platform.device_name, platform.ray_resource_name(), platform.communication_backend_name()) == ("cpu", "GPU", "gloo")
    assert not platform.__class__.__abstractmethods__ and platform.current_device().type == "cpu"


def test_a_checkpoint_remembers_the_same_settings_whoever_asks() -> None:
    """Start-up checks have a configuration as it was composed, the trainer as this verl wants it; a resume compares both."""
    config = compose_config(["algorithm=ppo", "backend=engine", "hardware=cpu"])
    config.critic.model.fsdp_config.fsdp_size = 2
    remembered = settings(config)
    assert remembered["critic.model.fsdp_config.fsdp_size"] == 2
    assert settings(seams.adapted(config.copy())) == remembered
