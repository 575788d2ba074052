"""SIGKILL at random moments, again and again: does the run end as the one that was left alone?

    python -m tests.benchmarks.kill_drill [--kills 8] [--seed 0]

Trains HPT for 12 steps with a checkpoint after each and validations between, once undisturbed and once killed at a moment drawn
uniformly from the time that a start and 4 steps take: while Ray starts, in a step, in a validation, while a checkpoint is written.
Prints what every kill met, and compares metrics and gate decisions of the two runs; exits with 1 if they differ.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import TIMING, World, build_world  # noqa: E402

STEPS = 12
# Compare engine and actor: 1e-8, and not the same twice, since the engine's batches form by arrival. No training reads them.
UNSTEADY = (*TIMING, "training/rollout", "rollout_corr/")
RUN = ("algorithm=hpt", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1", "trainer.test_freq=4")


def kill_once(world: World, after: float) -> str:
    """Start or continue the run and kill it after so many seconds; what it met, or that it had ended before."""
    run = world.start("killed", *RUN)
    begin = time.monotonic()
    while run.poll() is None and time.monotonic() - begin < after:
        time.sleep(0.01)
    if run.poll() is not None:
        return f"ended by itself with {run.returncode}"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    folders = sorted(world.checkpoints("killed").glob("global_step_*"), key=lambda folder: int(folder.name.rpartition("_")[2]))
    torn = [folder.name for folder in folders if not (folder / "unify_complete.json").exists()]
    return f"killed after {after:.1f} s, {len(folders) - len(torn)} checkpoints" + (f", {torn[-1]} half written" if torn else "")


def differences(world: World) -> list[str]:
    """Where the metrics of the two runs differ, timings and comparisons of engine and actor apart."""
    alone, killed = world.metrics("alone"), world.metrics("killed")
    found = [] if sorted(alone) == sorted(killed) else [f"steps {sorted(alone)} and {sorted(killed)}"]
    for step, entry in alone.items():
        other = killed.get(step, {})
        keys = [key for key in entry if not key.startswith(UNSTEADY) and entry[key] != other.get(key)]
        found += [f"step {step}: {key} {entry[key]} and {other.get(key)}" for key in keys]
    gates = [(world.home / "runs" / name / "gate.jsonl").read_text() for name in ("alone", "killed")]
    return found + (["gate.jsonl"] if gates[0] != gates[1] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(Path(folder))
        begin = time.monotonic()
        world.train("alone", *RUN)
        whole = time.monotonic() - begin
        span = whole - sum(entry["timing_s/step"] for step, entry in world.metrics("alone").items() if step > 4)
        for number in range(arguments.kills):
            sys.stdout.write(f"{number + 1}: {kill_once(world, draw.uniform(0, span))}\n")
            sys.stdout.flush()
        world.train("killed", *RUN)
        found = differences(world)
    sys.stdout.write(
        f"{STEPS} steps, {arguments.kills} kills: " + ("equal to the undisturbed run\n" if not found else "DIFFERENT\n")
    )
    if found:
        sys.exit("\n".join(found[:20]))


if __name__ == "__main__":
    main()
