"""SIGKILL at random moments, again and again: does the run end as the one that was left alone?

    python -m tests.benchmarks.kill_drill [--kills 8] [--seed 0]

Trains HPT for 24 steps with a checkpoint after each and validations between, once undisturbed and once killed again and again:
every second time at a moment drawn uniformly from the seconds of the start and first step, else from the seconds that 4 steps take
after the first new checkpoint. So kills meet the start of Ray, steps, validations, and checkpoints being written.
Prints what every kill met, and compares metrics and gate decisions of the two runs; exits with 1 if they differ.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import TIMING, World, build_world  # noqa: E402

STEPS = 24
# Compare engine and actor: 1e-8, and not the same twice, since the engine's batches form by arrival. No training reads them.
UNSTEADY = (*TIMING, "training/rollout", "rollout_corr/")
RUN = ("algorithm=hpt", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1", "trainer.test_freq=4")


def complete(world: World, name: str = "killed") -> set[int]:
    """Steps of the checkpoints that may be resumed from."""
    markers = world.checkpoints(name).glob("global_step_*/unify_complete.json")
    return {int(marker.parent.name.rpartition("_")[2]) for marker in markers}


def undisturbed(world: World) -> tuple[float, float]:
    """Make the run to compare with. Returns the seconds until its first checkpoint, and of 4 steps after it."""
    begin = time.monotonic()
    run, first = world.start("alone", *RUN), 0.0
    while run.poll() is None:
        time.sleep(0.05)
        if not first and complete(world, "alone"):
            first = time.monotonic() - begin
    if run.returncode:
        sys.exit(f"the undisturbed run exited with {run.returncode}\n{world.log('alone').read_text()[-2000:]}")
    steps = [entry["timing_s/step"] for step, entry in world.metrics("alone").items() if step > 1]
    return first, 4 * sum(steps) / len(steps)


def kill_once(world: World, after: float, in_training: bool) -> str:
    """Start or continue the run, kill it so many seconds later or after its first new checkpoint, and say what that met."""
    before = max(complete(world), default=0)
    run = world.start("killed", *RUN)
    begin = time.monotonic()
    while in_training and run.poll() is None and max(complete(world), default=0) == before:
        begin = time.monotonic()
        time.sleep(0.01)
    while run.poll() is None and time.monotonic() - begin < after:
        time.sleep(0.01)
    if run.poll() is not None:
        return f"ended by itself with {run.returncode}"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    newest = max(complete(world), default=0)
    folders = {int(folder.name.rpartition("_")[2]) for folder in world.checkpoints("killed").glob("global_step_*")}
    metrics = world.home / "runs" / "killed" / "metrics.jsonl"
    logged = re.findall(r'^{"step":(\d+),.*}$', metrics.read_text() if metrics.exists() else "", re.MULTILINE)
    met = f"{after:.1f} s after {'the first new checkpoint' if in_training else 'its start'}: newest checkpoint {newest}"
    met += f", step {logged[-1]} logged" if logged and int(logged[-1]) > newest else ""
    return met + "".join(f", step {step} half written" for step in sorted(folders - complete(world)))


def differences(world: World, name: str = "killed") -> list[str]:
    """Where metrics and gate decisions differ from the undisturbed run's, timings and comparisons of engine and actor apart."""
    alone, disturbed = world.metrics("alone"), world.metrics(name)
    found = [] if sorted(alone) == sorted(disturbed) else [f"steps {sorted(alone)} and {sorted(disturbed)}"]
    for step, entry in alone.items():
        other = disturbed.get(step, {})
        keys = [key for key in entry if not key.startswith(UNSTEADY) and entry[key] != other.get(key)]
        found += [f"step {step}: {key} {entry[key]} and {other.get(key)}" for key in keys]
    gates = [(world.home / "runs" / each / "gate.jsonl").read_text() for each in ("alone", name)]
    return found + (["gate.jsonl"] if gates[0] != gates[1] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(Path(folder))
        spans = undisturbed(world)
        for number in range(arguments.kills):
            sys.stdout.write(f"{number + 1}: {kill_once(world, draw.uniform(0, spans[number % 2]), bool(number % 2))}\n")
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
