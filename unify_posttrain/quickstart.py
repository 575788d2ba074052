"""The quick start: data, a tiny base model, HPT on CPU with real Ray, verl and FSDP, and one table of what happened.

    make quickstart        or        python -m unify_posttrain.quickstart [--compare grpo]
    make quickstart-vl     or        python -m unify_posttrain.quickstart [--compare grpo] task=shapes model=tiny_qwen2_5_vl

It runs the same commands that a user would type and reads the same files that they leave.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unify_posttrain.config import INTERRUPTED, compose_config
from unify_posttrain.output import cell, guarded_output
from unify_posttrain.redaction import redact_text, redacted_overrides
from unify_posttrain.runs.lineage import read_run
from unify_posttrain.text import with_margin

SPLITS = {"easy": "easy", "hard": "hard", "out of distribution": "ood"}
DEFAULT_TASK = "arithmetic"
PROBLEMS = {"arithmetic": "sums", "shapes": "pictures"}  # what the problems of a task are, for the title
BLOCKS = " ▁▂▃▄▅▆▇█"
POLL_SECONDS = 0.5

Metrics = dict[int, dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unify-quickstart`."""
    parser = argparse.ArgumentParser(description="Train HPT on a generated task on CPU and show what happened.")
    parser.add_argument("--compare", metavar="ALGORITHM", action="append", default=[], help="the same steps of another algorithm")
    parser.add_argument("overrides", nargs="*", help="configuration overrides for every run, e.g. trainer.total_training_steps=20")
    with guarded_output():
        _run(parser.parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    console = Console(width=None if sys.stdout.isatty() else 110)
    started = time.monotonic()
    try:
        prepare(console, options.overrides)
        runs = {name: train(console, name, options.overrides) for name in ("hpt", *options.compare)}
    except RuntimeError as error:
        console.print(Text(with_margin(redact_text(str(error))), style="red"), soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("[red]interrupted[/red]; the same command begins again")
        sys.exit(INTERRUPTED)
    report(console, runs, options.overrides)
    console.print(f"Done in {time.monotonic() - started:.0f} s.")


def prepare(console: Console, overrides: Sequence[str]) -> None:
    """Data and base model, both cached."""
    from unify_posttrain.prepare import prepare_data, prepare_model

    config = compose_config(overrides)
    files = prepare_data(config)
    console.print(cell(f"[1/3] data: {', '.join(str(path) for path in files.values())}"), soft_wrap=True)
    with _bar(console) as bar:
        about = (
            f"[2/3] base model: pretraining {config.prepare.model.name} on {config.prepare.model.pretraining.task} (minutes, once)"
        )
        task = bar.add_task(about, total=None)

        def advance(step: int, total: int, loss: float) -> None:
            bar.update(task, completed=step, total=total)

        folder = prepare_model(config, advance)
    console.print(cell(f"[2/3] base model: {folder}"), soft_wrap=True)


def train(console: Console, algorithm: str, overrides: Sequence[str]) -> Metrics:
    """Run the training command, following its metrics file. Returns step -> metrics.

    Raises:
        RuntimeError: the command failed; holds the end of its log.
    """
    name = run_name(algorithm, overrides)
    run = [f"algorithm={algorithm}", f"trainer.experiment_name={name}", "trainer.resume_mode=disable", *overrides]
    config = compose_config(run)
    folder, steps = Path(config.trainer.run_dir), int(config.trainer.total_training_steps)
    folder.mkdir(parents=True, exist_ok=True)
    metrics_file, log = folder / "metrics.jsonl", folder / "train.log"
    before = read_run(folder)  # of an earlier quick start, whose metrics are there until the new run sets them aside
    command = [sys.executable, "-m", "unify_posttrain.train", *run]
    console.print(cell(f"[3/3] python -m unify_posttrain.train {' '.join(redacted_overrides(run))}"), soft_wrap=True)
    console.print(cell(f"      log: {log}"), soft_wrap=True)
    with open(log, "w", encoding="utf-8") as output, _bar(console) as bar:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        task = bar.add_task("      starting Ray, verl and the engine (about a minute)", total=None)
        try:
            while process.poll() is None:
                _show(bar, task, _read(metrics_file) if read_run(folder) != before else {}, steps)
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        tail = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-30:])
        raise RuntimeError(f"training exited with {process.returncode}; the end of {log}:\n{tail}")
    return _read(metrics_file)


def run_name(algorithm: str, overrides: Sequence[str]) -> str:
    """Of a quick start's run: tasks have folders of their own."""
    task = task_name(overrides)
    return f"quickstart-{algorithm}" if task == DEFAULT_TASK else f"quickstart-{task}-{algorithm}"


def task_name(overrides: Sequence[str]) -> str:
    """The task that is trained."""
    return str(compose_config(overrides).prepare.task.name)


def _show(bar: Progress, task: int, metrics: Metrics, steps: int) -> None:
    if not metrics:
        return
    step = max(metrics)
    last = metrics[step]
    if "fusion/prompts_sft" not in last:
        bar.update(task, description="      accuracy before training measured; first step")
        return
    prompts = sum(last[f"fusion/prompts_{zone}"] for zone in ("rl", "sft", "off", "skipped"))
    text = (
        f"      solved {last['fusion/solve_rate']:4.0%}, demonstrations for {last['fusion/prompts_sft'] / prompts:4.0%} of prompts"
    )
    bar.update(task, completed=step, total=steps, description=text)


def report(console: Console, runs: dict[str, Metrics], overrides: Sequence[str]) -> None:
    """One table: accuracy before and after, and how the gate moved."""
    task = task_name(overrides)
    table = Table(title=cell(f"Accuracy on held-out {PROBLEMS.get(task, task)} (greedy)"), title_justify="left")
    table.add_column("split")
    table.add_column("before", justify="right")
    for name in runs:
        table.add_column(cell(f"after {name}"), justify="right")
    for split, source in SPLITS.items():
        key = f"val-core/{task}_{source}/acc/mean@1"
        ends = [_validated(metrics, key) for metrics in runs.values()]
        table.add_row(split, f"{ends[0][0]:.1%}", *(f"{after:.1%} ({after - before:+.1%})" for before, after in ends))
    console.print(table)
    trained = {step: m for step, m in runs["hpt"].items() if "fusion/prompts_sft" in m}
    gate = Table(title="The gate of HPT: from demonstrations to rollouts", title_justify="left")
    for column in ("steps", "prompts trained on a demonstration", "on their rollouts", "rollouts solved"):
        gate.add_column(column, justify="left" if column == "steps" else "right")
    for steps in _parts(sorted(trained), parts=5):
        mean = {
            name: sum(trained[s][f"fusion/{name}"] for s in steps) / len(steps)
            for name in ("prompts_sft", "prompts_rl", "solve_rate")
        }
        prompts = mean["prompts_sft"] + mean["prompts_rl"]
        gate.add_row(
            f"{steps[0]:d}-{steps[-1]:d}",
            f"{mean['prompts_sft'] / prompts:.0%}",
            f"{mean['prompts_rl'] / prompts:.0%}",
            f"{mean['solve_rate']:.0%}",
        )
    console.print(gate)
    shares = [m["fusion/prompts_sft"] / max(1.0, m["fusion/prompts_sft"] + m["fusion/prompts_rl"]) for m in trained.values()]
    console.print("share of demonstrations, step by step: " + "".join(BLOCKS[round(share * (len(BLOCKS) - 1))] for share in shares))
    config = compose_config([*overrides, f"trainer.experiment_name={run_name('hpt', overrides)}"])
    folder = Path(config.trainer.run_dir)
    newest = max((folder / "checkpoints").glob("global_step_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]), default="none")
    for name, path in {
        "checkpoint": newest,
        "metrics": folder / "metrics.jsonl",
        "gate decisions": folder / "gate.jsonl",
        "validation samples": folder / "samples",
        "configuration": folder / "config.yaml",
    }.items():
        console.print(cell(f"{name:>19}: {path}"), soft_wrap=True)


def _validated(metrics: Metrics, key: str) -> tuple[float, float]:
    values = [metrics[step][key] for step in sorted(metrics) if key in metrics[step]]
    return values[0], values[-1]


def _parts(steps: list[int], parts: int) -> Iterator[list[int]]:
    """Consecutive parts of about equal length."""
    size = -(-len(steps) // parts)
    for start in range(0, len(steps), size):
        yield steps[start : start + size]


def _read(path: Path) -> Metrics:
    """Complete lines of a metrics file that may be being written."""
    if not path.exists():
        return {}
    entries = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        entries[entry["step"]] = entry["data"]
    return entries


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
