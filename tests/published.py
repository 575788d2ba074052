"""docs/published.md: every number of the published runs beside ours, made of docs/published.yaml and of the composed configuration.

    python -m tests.published            # say what is stale or lacks a reason
    python -m tests.published --write    # write docs/published.md

"Ours" is what the run's command composes to, so a change in conf/ or exp_scripts/ shows up here. tests/scripts/test_published.py
keeps the page up to date.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from unify_posttrain.config import compose_config
from unify_posttrain.healing.plan import Healing, first_steps, later_steps

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "docs" / "published.yaml", ROOT / "docs" / "published.md"
SAME = "the same"

INTRODUCTION = """\
# Published runs and ours

Made by `python -m tests.published --write` out of [published.yaml](published.yaml) and the composed configuration, not by hand.

Each table is one published run. Its settings stand under the keys that they have here. *Ours* is what the command above the table
composes to. Where the two differ, the last column says why; those rows come first. None of these runs was repeated here.

`algorithm=NAME` is the paper's method under this package's normalisation. `algorithm=NAME_released` has the balance of its released
code ([conf/algorithm](../conf/algorithm)). Below a table of the latter stands what the former has instead. What is not listed was
neither in the script named as the source nor in the paper.
"""


@dataclass(frozen=True)
class Row:
    """A setting of a published run.

    Attributes:
        setting: its key here, or what it is where it has none.
        published, ours: values.
        why: the reason why they differ; None: none is given.
        key: whether `setting` is a key.
    """

    setting: str
    published: Any
    ours: Any
    why: str | None
    key: bool = True

    @property
    def differs(self) -> bool:
        return bool(self.published != self.ours)


@dataclass(frozen=True)
class Run:
    """A published run with our command for it, and what the method's own conf has instead of the released balance's."""

    title: str
    method: str
    source: str
    command: str
    rows: tuple[Row, ...]
    own: tuple[tuple[str, Any], ...]


def read() -> dict[str, Any]:
    return yaml.safe_load(DATA.read_text(encoding="utf-8"))


@cache
def composed(command: str, step: str | None = None) -> Any:
    """The configuration that a script and its arguments stand for; paths begin with `outputs`.

    Args:
        step: of a script that runs several commands (`python -m unify_posttrain.healing`), the training that is meant.
    """
    overrides = script_overrides(command)
    if step is not None:
        chain = Healing.from_config(compose_config(overrides, "heals"))
        starts = {seed: dict.fromkeys(chain.starts, 0) for seed in chain.seeds}  # which checkpoints, is no setting
        (overrides,) = [
            each.overrides for group in (*first_steps(chain), *later_steps(chain, starts)) for each in group if each.name == step
        ]
    return compose_config(overrides)


@cache
def script_overrides(command: str) -> tuple[str, ...]:
    """What a script hands to the training command, found by an interpreter that prints its arguments."""
    script, *arguments = command.split()
    with tempfile.TemporaryDirectory() as folder:
        echo = Path(folder) / "python"
        echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        echo.chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(echo)}
        done = subprocess.run([ROOT / script, *arguments], capture_output=True, text=True, env=environment, check=True)
    return tuple(done.stdout.splitlines()[2:])


def runs(data: Mapping[str, Any]) -> list[Run]:
    """Every run with our composed values.

    Raises:
        KeyError: a key that the composed configuration does not have.
    """
    return [_run(entry, data["reasons"]) for entry in data["runs"]]


def _run(entry: Mapping[str, Any], reasons: Mapping[str, str]) -> Run:
    config, own_config = composed(entry["command"], entry.get("step")), None
    if f"algorithm={entry['method']}_released" in entry["command"]:
        own_config = composed(entry["command"].replace(f" algorithm={entry['method']}_released", ""))
    rows, own = [], []
    for key, given in entry["settings"].items():
        published, why = (given["published"], given["why"]) if isinstance(given, Mapping) else (given, None)
        ours = _value(config, key, entry["title"])
        rows.append(Row(key, published, ours, reasons.get(why, why) if why else None))
        if own_config is not None and _value(own_config, key, entry["title"]) != ours:
            own.append((key, _value(own_config, key, entry["title"])))
    for given in entry.get("also", ()):
        why = given.get("why")
        ours = given.get("ours", given["published"])
        rows.append(Row(given["setting"], given["published"], ours, reasons.get(why, why), key=False))
    command = entry["command"] + (f"   # of its steps {entry['step']}" if "step" in entry else "")
    return Run(entry["title"], entry["method"], entry["source"], command, tuple(rows), tuple(own))


def _value(config: Any, key: str, title: str) -> Any:
    absent = object()
    value = OmegaConf.select(config, key, default=absent)
    if value is absent:
        raise KeyError(f"{title}: {key} is no key of the composed configuration")
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def faults(found: Sequence[Run]) -> list[str]:
    """Differences without a reason, and reasons without a difference."""
    wrong = []
    for run in found:
        for row in run.rows:
            if row.differs and not row.why:
                wrong.append(f"{run.title}: {row.setting} is {row.ours!r}, published {row.published!r}: say why")
            if row.why and not row.differs:
                wrong.append(f"{run.title}: {row.setting} is {row.ours!r} as published: there is nothing to explain")
    return wrong


def render(data: Mapping[str, Any]) -> str:
    """docs/published.md."""
    parts = [INTRODUCTION, *(_section(run) for run in runs(data))]
    rest = "\n".join(f"- `{name}`: {' '.join(why.split())}" for name, why in data["unknown"].items())
    parts.append(f"## Not known here\n\nScripts of exp_scripts/ whose published runs are not compared:\n\n{rest}\n")
    return "\n".join(parts)


def _section(run: Run) -> str:
    algorithm = next((word for word in run.command.split() if word.startswith("algorithm=")), f"algorithm={run.method}")
    lines = [
        f"## {run.title}",
        "",
        f"Source: {run.source}.",
        "",
        "```bash",
        run.command,
        "```",
        "",
        f"| setting | published | ours (`{algorithm}`) | why |",
        "|---|---|---|---|",
    ]
    for row in sorted(run.rows, key=lambda row: not row.differs):  # what differs comes first
        ours = _text(row.ours) if row.differs else SAME
        lines.append(
            f"| {f'`{row.setting}`' if row.key else row.setting} | {_text(row.published)} | {ours} | {_words(row.why or '')} |"
        )
    if run.own:
        own = ", ".join(f"`{key}` {_text(value)}" for key, value in run.own)
        lines += ["", f"`algorithm={run.method}` instead: {own}."]
    return "\n".join([*lines, ""])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(_text(each) for each in value)
    return _words(str(value))


def _words(text: str) -> str:
    """In one line, with no bar that would end a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    data = read()
    page, wrong = render(data), faults(runs(data))
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        wrong.append(f"{PAGE.relative_to(ROOT)} is stale; write it with: python -m tests.published --write")
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
