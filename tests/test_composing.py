"""Test support that saves time must change nothing: what Hydra composes out of memory, and which process takes which file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests import composing
from tests.scheduling import OneEndToEnd
from unify_posttrain.config import compose_config

SELECTIONS = (
    ["algorithm=luffy", "fusion.seed=1"],
    ["algorithm=luffy", "fusion.seed=2", "trainer.run_dir=here", "+dry_run=true"],
    ["algorithm=sft_then_rl", "fusion.phases=[{algorithm:dapo,steps:1},{algorithm:hpt}]"],
    ["model=qwen3_8b", "hardware=node_8gpu"],
)
PLAIN = """
import sys
from omegaconf import OmegaConf
from unify_posttrain.config import compose_config

for selection in sys.argv[1:]:
    print(OmegaConf.to_yaml(compose_config(selection.split())), end="")
"""


class Node:
    """Of xdist, as far as a scheduler needs one."""

    def __init__(self, send: Callable[[list[int]], None]) -> None:
        self.send_runtest_some = send


@pytest.mark.slow
def test_what_is_remembered_is_what_hydra_composes() -> None:
    """Twice here, the second time out of memory; in another process without any."""
    command = [sys.executable, "-c", PLAIN, *map(" ".join, SELECTIONS)]
    plain = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    for _ in range(2):
        assert "".join(OmegaConf.to_yaml(compose_config(selection)) for selection in SELECTIONS) == plain


def test_files_of_conf_are_parsed_once_and_every_reader_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "conf_dir", lambda: tmp_path / "conf")
    (tmp_path / "conf").mkdir()
    for folder in (tmp_path, tmp_path / "conf"):
        file = folder / "one.yaml"
        file.write_text("value: 1\nlist: [1]\nother: ${value}\n")
        first = OmegaConf.load(file)
        first.value, first.list[0] = 2, 2
        again = OmegaConf.load(str(file))
        assert (again.value, list(again.list), again.other) == (1, [1], 1) and first.other == 2
        file.write_text("value: 3\n")
        os.utime(file, ns=(1, 1))
        assert OmegaConf.load(file) == {"value": 3}
        with pytest.raises(FileNotFoundError):
            OmegaConf.load(folder / "none.yaml")


def test_a_file_that_changes_is_read_again_and_values_are_never_remembered(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "main.yaml").write_text("defaults: [group: one, _self_]\nvalue: 1\n")
    (tmp_path / "group" / "one.yaml").write_text("content: old\n")
    (tmp_path / "group" / "two.yaml").write_text("content: other\n")

    def composed(*overrides: str) -> tuple[int, str]:
        running = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(version_base=None, config_dir=str(tmp_path)):
                config = compose("main", list(overrides))
        finally:
            GlobalHydra.instance().hydra = running
        return config.value, config.group.content

    assert composed() == composed() == (1, "old")
    assert composed("value=2") == (2, "old") and composed() == (1, "old")
    assert composed("group=two", "value=3") == (3, "other")
    (tmp_path / "group" / "one.yaml").write_text("content: new\n# and longer\n")
    assert composed() == (1, "new")


def test_one_process_takes_the_end_to_end_tests_and_helps_when_it_has_none_left() -> None:
    files = ["tests/many.py", "tests/e2e/long.py", "tests/some.py", "tests/e2e/short.py", "tests/few.py"]
    scheduler, taken = OneEndToEnd.__new__(OneEndToEnd), []
    scheduler.workqueue = OrderedDict((file, {f"{file}::test": False}) for file in files)
    nodes = [Node(lambda numbers: taken.append(files[numbers[0]])) for _ in range(2)]
    scheduler.assigned_work = {node: {} for node in nodes}
    scheduler.registered_collections = {node: [f"{file}::test" for file in files] for node in scheduler.assigned_work}
    first, second = scheduler.assigned_work
    for node in (first, second, first, first, second):
        scheduler._assign_work_unit(node)
    assert taken == ["tests/e2e/long.py", "tests/many.py", "tests/e2e/short.py", "tests/few.py", "tests/some.py"]
