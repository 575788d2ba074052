"""A long run: do memory and file handles stay flat?

    python -m tests.benchmarks.soak [--minutes 60] [--output soak.json]

Trains HPT on the miniature world of the end-to-end tests, with validation and checkpoints as a long run has them, and samples every
process of the run: resident memory, open files, threads. Prints, summed by kind of process, the medians of the second and of the
last tenth of the time, and the slope per 1000 steps by least squares over everything after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import World, build_world  # noqa: E402

RUN = (
    "algorithm=hpt",
    "trainer.total_training_steps=1000000",
    "trainer.save_freq=50",
    "trainer.test_freq=50",
    "trainer.max_actor_ckpt_to_keep=2",
    "actor_rollout_ref.actor.optim.lr=1e-6",  # the gate stays half open
)
INTERVAL = 5.0
MEASURES = {"memory_mb": "resident memory (MB)", "files": "open files", "threads": "threads"}


def kind(process: psutil.Process) -> str:
    """What a process of the run is called in the table."""
    title = " ".join(process.cmdline())
    ray_worker = re.match(r"ray::(\w+)", title)
    if ray_worker:
        return ray_worker.group(1)
    for name in ("raylet", "gcs_server", "unify_posttrain.train"):
        if name in title:
            return name
    return "other processes of Ray"


def sample(root: psutil.Process) -> dict[str, dict[str, float]]:
    """Measures summed by kind of process."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(MEASURES, 0.0))
    for process in [root, *root.children(recursive=True)]:
        try:
            values = {
                "memory_mb": process.memory_info().rss / 1e6,
                "files": float(process.num_fds()),
                "threads": float(process.num_threads()),
            }
            for name, value in values.items():
                sums[kind(process)][name] += value
        except psutil.Error:
            continue  # it ended between being listed and being asked
    return dict(sums)


def last_step(world: World, name: str) -> int:
    path = world.home / "runs" / name / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def watch(world: World, minutes: float) -> list[dict]:
    """Samples of a run of the given length, counted from its first step."""
    run = world.start("soak", *RUN)
    world.wait_for_step(run, "soak", 1)
    root, begin, samples = psutil.Process(run.pid), time.monotonic(), []
    try:
        while (passed := time.monotonic() - begin) < minutes * 60:
            if run.poll() is not None:
                raise RuntimeError(f"the run ended with {run.returncode}\n{world.log('soak').read_text()[-4000:]}")
            samples.append({"seconds": passed, "step": last_step(world, "soak"), "kinds": sample(root)})
            time.sleep(INTERVAL)
    finally:
        os.killpg(run.pid, signal.SIGTERM)
        run.wait()
    return samples


def summarise(samples: list[dict]) -> list[dict]:
    """Per kind of process and measure: early and late medians, and the slope per 1000 steps."""
    tenth = max(1, len(samples) // 10)
    rows = []
    for name in sorted({name for each in samples for name in each["kinds"]}):
        for measure in MEASURES:
            series = [(each["step"], each["kinds"].get(name, {}).get(measure, 0.0)) for each in samples]
            steps, values = np.array(series[tenth:], dtype=float).T
            slope = float(np.polyfit(steps, values, 1)[0] * 1000) if len(set(steps)) > 1 else 0.0
            early = statistics.median(value for _, value in series[tenth : 2 * tenth])
            late = statistics.median(value for _, value in series[-tenth:])
            rows.append({"process": name, "measure": measure, "early": early, "late": late, "per_1000_steps": slope})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--output", type=Path, help="JSON file for all samples and the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = watch(build_world(Path(folder)), arguments.minutes)
    rows = summarise(samples)
    sys.stdout.write(f"{samples[-1]['step']} steps in {samples[-1]['seconds'] / 60:.1f} minutes\n\n")
    sys.stdout.write("| process | measure | early | late | per 1000 steps |\n|---|---|---|---|---|\n")
    for row in rows:
        name = MEASURES[row["measure"]]
        sys.stdout.write(f"| {row['process']} | {name} | {row['early']:.0f} | {row['late']:.0f} | {row['per_1000_steps']:+.2f} |\n")
    if arguments.output:
        arguments.output.write_text(json.dumps({"samples": samples, "table": rows}))


if __name__ == "__main__":
    main()
