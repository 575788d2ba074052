"""The same runs on `backend=legacy` and on `backend=engine`, with both versions of verl: do they train the same, and how fast?

    python -m tests.benchmarks.backends --newer .venv-verl09/bin/python
    python -m tests.benchmarks.backends --runs relift uft --world FOLDER --output backends.json

Real runs of the training command on the miniature world of the end-to-end tests. Prints two Markdown tables. The first one has, per
run, how many metrics are equal to the last bit to those of `legacy`, and of the two engines to each other; the largest relative
difference from `legacy` in each group of metrics; and how long a step and the start-up took as ratios. The second one has what the
engine does with a run besides: killed after its third step and started again, does it end as if nothing had happened, and how far
are its exported weights from those of `legacy`? Exits with 1 if a number is further away than rounding takes it, or if a run that
was killed ends otherwise.

With `--world` a folder keeps the runs, and the same command later makes only those that are missing there.
About half a minute per run on two idle cores, 46 runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import TIMING, World, build_world  # noqa: E402
from tests.e2e.points import RUN as POINTS  # noqa: E402
from tests.e2e.points import add_points  # noqa: E402
from tests.e2e.shapes import RUN as SHAPES  # noqa: E402
from tests.e2e.shapes import add_shapes  # noqa: E402
from tests.e2e.test_backends import ROUNDING  # noqa: E402

STEPS, SAVED, KILLED_AFTER = 4, 2, 3
COMMON = (f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={SAVED}")
TWO_RANKS = ("trainer.n_gpus_per_node=2", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8")
POINTS_FILES = "${oc.env:UNIFY_HOME}/data/general_points"
EPISODES = (
    "task=general_points_small",
    *(override for override in POINTS if not override.startswith("task=")),
    f"data.train_files={POINTS_FILES}/train.parquet",
    f"data.val_files={POINTS_FILES}/test.parquet",
)
RUNS: dict[str, tuple[str, ...]] = {
    "hpt": ("algorithm=hpt",),
    "relift": ("algorithm=relift", "fusion.relift.sft_data_size=3", "fusion.relift.lr=1e-3"),
    "uft": ("algorithm=uft",),
    "sft_then_rl": ("algorithm=sft_then_rl",),
    "episodes of hpt": ("algorithm=hpt", *EPISODES),
    "hpt with pictures": ("algorithm=hpt", *SHAPES),
    "dapo": ("algorithm=dapo",),
    "hpt on 2 ranks": ("algorithm=hpt", *TWO_RANKS),
    "ppo on 2 ranks": ("algorithm=ppo", "critic.optim.lr=1e-3", "critic.ppo_micro_batch_size_per_gpu=8", *TWO_RANKS),
}  # fmt: skip
# What else is done with it, on the engine: killed and started again, exported.
KILLED = ("relift", "hpt with pictures", "dapo", "hpt on 2 ranks", "ppo on 2 ranks")
EXPORTED = ("hpt with pictures", "hpt on 2 ranks")
# Rollouts come from the same seeds, so a count or a share is the same number; a loss differs in its last digits, and after a step
# the weights do that it moved. What is nothing beside 1 is a sum that cancels.
ALLOWED, NOTHING = 1e-3, 1e-6
GROUPS = ("rows, tokens, rewards", "losses", "norms of gradients", "other metrics")
COUNTED = (
    *("fusion/rows", "fusion/tokens", "fusion/prompts", "fusion/gate", "fusion/gen_batches", "fusion/buffer_size"),
    *("fusion/replay_rows", "critic/rewards", "critic/score", "response_length", "prompt_length", "environment/", "num_turns"),
)


@dataclasses.dataclass(frozen=True)
class Side:
    """A backend with a version of verl."""

    name: str
    backend: str
    world: World

    def label(self, run: str) -> str:
        return f"{run}-{self.name}".replace(" ", "-")

    def train(self, run: str) -> float:
        """Make a run, unless it is there. Returns the seconds of the whole command."""
        record = self.world.home / f"{self.label(run)}.seconds.json"
        if not record.exists():
            begin = time.monotonic()
            self.world.train(self.label(run), f"backend={self.backend}", *COMMON, *RUNS[run], timeout=1800)
            record.write_text(json.dumps(time.monotonic() - begin))
        return float(json.loads(record.read_text()))

    def killed(self, run: str) -> list[str]:
        """Kill a run after its third step, whose newest checkpoint is the second step's, and start it again, unless that was done.
        Returns what then is not as in the run that was left alone."""
        name, overrides = f"{self.label(run)}-killed", (f"backend={self.backend}", *COMMON, *RUNS[run])
        record = self.world.home / f"{name}.json"
        if not record.exists():
            process = self.world.start(name, *overrides)
            self.world.wait_for_step(process, name, KILLED_AFTER, timeout=1200)
            os.killpg(process.pid, signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                raise RuntimeError(f"{name} ended before it was killed")
            steps = sorted(path.name for path in self.world.checkpoints(name).glob("global_step_*"))
            if steps != [f"global_step_{SAVED}"]:
                raise RuntimeError(f"{name} was killed with the checkpoints {steps}")
            self.world.train(name, *overrides, timeout=1800)
            record.write_text("true")
        alone, again = self.world.metrics(self.label(run)), self.world.metrics(name)
        return [
            f"step {step}: {key} {value} and {again[step].get(key)}"
            for step, entry in alone.items()
            for key, value in entry.items()
            if not key.startswith(TIMING) and again[step].get(key) != value
        ]

    def exported(self, run: str) -> dict[str, Any]:
        """The weights of a run's last step, exported by the command, by name."""
        from safetensors.torch import load_file

        folder = self.world.home / f"{self.label(run)}-exported"
        if not folder.exists():
            command = [
                self.world.python,
                "-m",
                "unify_posttrain.export",
                str(self.world.home / "runs" / self.label(run)),
                f"output={folder}",
            ]
            subprocess.run(command, env=self.world.environment, cwd=self.world.home, check=True, capture_output=True)
        return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def group_of(metric: str) -> str:
    """Losses and norms of gradients stand for themselves, wherever verl and this package put them."""
    if "grad_norm" in metric:
        return "norms of gradients"
    if "loss" in metric or "nll" in metric:
        return "losses"
    return "rows, tokens, rewards" if metric.startswith(COUNTED) else "other metrics"


def differences(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Of two runs' metrics, timings apart: how many are equal to the last bit, and per group the largest difference relative to the
    largest value that the metric has in the run.

    Raises:
        RuntimeError: the runs do not have the same steps and metrics.
    """
    keys = {step: {key for key in entry if not key.startswith(TIMING)} for step, entry in one.items()}
    theirs = {step: {key for key in entry if not key.startswith(TIMING)} for step, entry in other.items()}
    if keys != theirs:
        odd = {step: sorted(keys[step] ^ theirs.get(step, set())) for step in keys if keys[step] != theirs.get(step)}
        raise RuntimeError(f"metrics of one run alone: {odd or sorted(set(theirs) - set(keys))}")
    names = [key for step in keys for key in keys[step]]
    equal = sum(one[step][key] == other[step][key] for step in keys for key in keys[step])
    worst: dict[str, float] = {}
    of: dict[str, str] = {}
    for name in sorted({key for key in names if not key.startswith(ROUNDING)}):
        pairs = [(one[step][name], other[step][name]) for step in keys if name in keys[step]]
        scale = max(NOTHING / ALLOWED, *(abs(a) for a, _ in pairs))
        difference = max(abs(a - b) for a, b in pairs) / scale
        group = group_of(name)
        if difference >= worst.get(group, -1.0):
            worst[group], of[group] = difference, name
    return {"metrics": len(names), "equal": equal, "worst": worst, "of": of}


def timing(world: World, label: str, seconds: float) -> dict[str, float]:
    """Seconds of a step without the first, and of everything outside of the steps."""
    steps = [entry["timing_s/step"] for _, entry in sorted(world.metrics(label).items())]
    return {"step": statistics.median(steps[1:]), "start": seconds - sum(steps)}


def compare(sides: list[Side], run: str) -> dict[str, Any]:
    """A run on every side, against the first one."""
    seconds = {}
    for side in sides:
        seconds[side.name] = side.train(run)
        sys.stderr.write(f"{run}, {side.name}: {seconds[side.name]:.0f} s\n")
    first = sides[0]
    times = {side.name: timing(side.world, side.label(run), seconds[side.name]) for side in sides}
    found: dict[str, Any] = {"seconds": times}
    between = differences(*(side.world.metrics(side.label(run)) for side in sides[1:]))
    for side in sides[1:]:
        found[side.name] = differences(first.world.metrics(first.label(run)), side.world.metrics(side.label(run)))
        found[side.name]["same_gate"] = gate(first, run) == gate(side, run)
        found[side.name]["equal_to_each_other"] = between["equal"]
        found[side.name] |= {f"{key}_ratio": times[side.name][key] / times[first.name][key] for key in ("step", "start")}
    return found


def gate(side: Side, run: str) -> str | None:
    """What the gate decided, prompt by prompt; None where there is none."""
    path = side.world.home / "runs" / side.label(run) / "gate.jsonl"
    return path.read_text() if path.exists() else None


def alone(sides: list[Side], run: str) -> dict[str, Any]:
    """What the engine does with a run besides: killed, exported."""
    found: dict[str, Any] = {}
    for side in sides[1:]:
        entry: dict[str, Any] = {}
        if run in KILLED:
            entry["killed"] = side.killed(run)
            sys.stderr.write(f"{run}, {side.name}, killed: {entry['killed'][:3] or 'equal'}\n")
        if run in EXPORTED:
            ours, theirs = sides[0].exported(run), side.exported(run)
            if ours.keys() != theirs.keys():
                raise RuntimeError(f"{run}: exported tensors of one side alone: {sorted(ours.keys() ^ theirs.keys())}")
            entry["exported"] = max(float((theirs[name] - ours[name]).abs().max()) for name in ours)
        found[side.name] = entry
    return found


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """Both tables."""
    head = ["run", "engine with verl", "metrics equal to the last bit", "both engines", *GROUPS, "step", "start-up"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for run, result in results.items():
        for side, found in result["compared"].items():
            if side == "seconds":
                continue
            worst = [f"{found['worst'].get(group, 0.0):.1e}".replace("0.0e+00", "0") for group in GROUPS]
            equal = f"{found['equal']} of {found['metrics']}"
            ratios = [f"{found[f'{key}_ratio']:.2f}" for key in ("step", "start")]
            lines.append("| " + " | ".join([run, side, equal, str(found["equal_to_each_other"]), *worst, *ratios]) + " |")
    lines += [
        "",
        "| run | engine with verl | killed after step 3, started again | exported weights, largest difference |",
        "|---|---|---|---|",
    ]
    for run, result in results.items():
        for side, found in result["alone"].items():
            killed = {None: "-", 0: "equal to the last bit"}.get(
                len(found["killed"]) if "killed" in found else None, "**different**"
            )
            exported = f"{found['exported']:.1e}" if "exported" in found else "-"
            if found:
                lines.append(f"| {run} | {side} | {killed} | {exported} |")
    return "\n".join(lines) + "\n"


def wrong(results: dict[str, dict[str, Any]]) -> list[str]:
    """What is further away than rounding takes it."""
    found = []
    for run, result in results.items():
        for side, entry in result["compared"].items():
            if side == "seconds":
                continue
            found += [
                f"{run}, {side}: {entry['of'][group]} {value:.1e}" for group, value in entry["worst"].items() if value > ALLOWED
            ]
            found += [] if entry["same_gate"] else [f"{run}, {side}: gate.jsonl"]
        for side, entry in result["alone"].items():
            found += [f"{run}, {side}, killed: {each}" for each in entry.get("killed", [])[:5]]
            found += [f"{run}, {side}: exported weights"] if entry.get("exported", 0.0) > ALLOWED else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--newer", type=Path, default=ROOT / ".venv-verl09" / "bin" / "python", help="an interpreter with verl 0.9.1"
    )
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--world", type=Path, help="folder that keeps data, model and runs")
    parser.add_argument("--output", type=Path, help="JSON file for everything")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = (arguments.world or Path(folder)).resolve()
        world = World(home)
        if not (home / "models" / "tiny_points").exists():
            build_world(home)
            add_points(world)
        if "hpt with pictures" in arguments.runs and not (home / "data" / "shapes").exists():
            add_shapes(world)
        newer = dataclasses.replace(world, python=str(arguments.newer.absolute()))
        sides = [Side("legacy", "legacy", world), Side("0.7.1", "engine", world), Side("0.9.1", "engine", newer)]
        results = {run: {"compared": compare(sides, run), "alone": alone(sides, run)} for run in arguments.runs}
    sys.stdout.write(markdown(results))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))
    if found := wrong(results):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
