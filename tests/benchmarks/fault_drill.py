"""Faults of every kind at random moments: does each run end as the one that was left alone, or say why it ended?

    python -m tests.benchmarks.fault_drill [--minutes 30] [--seed 0]

Trains HPT with a reward function that misbehaves on a part of the responses (exceptions, exits, crashes, no score, NaN, odd
fields), once undisturbed. Then, until the time is up, the same run again and again under faults that are drawn one after the
other: signals to the process or to its group, killed engines, actor and reward workers, a disk that fills, resumes with a setting
that must not change. After each of them the same command goes on. Every end must say in its last lines what happened, and every
finished run must equal the undisturbed one. Exits with 1 if one does not.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.kill_drill import complete, differences  # noqa: E402
from tests.e2e.conftest import World, build_world  # noqa: E402

STEPS = 150
AT_THE_START = 0.25  # share of the strikes that meet a run before its first step
REWARD = """
import os, zlib
from unify_posttrain.tasks.arithmetic import compute_score as right

def compute_score(data_source, solution_str, ground_truth, extra_info):
    result, kind = right(data_source, solution_str, ground_truth), zlib.crc32(solution_str.encode()) % 40
    if kind == 0:
        raise KeyError("no such thing")
    if kind == 1:
        raise SystemExit(3)
    if kind == 2:
        os._exit(0)
    if kind == 3:
        return {**result, "score": float("nan")}
    if kind == 4:
        return None
    if kind == 5:
        return {**result, "parts": [1, {"a": None}]}
    return result
"""


@dataclass(frozen=True)
class Fault:
    """What is done to a run that has trained for a while, and what its last lines must say (nothing is asked of a SIGKILL)."""

    name: str
    strike: Callable[[subprocess.Popen], bool]  # False: there was nothing to strike
    says: str | None


def to_process(number: signal.Signals) -> Callable[[subprocess.Popen], bool]:
    def strike(run: subprocess.Popen) -> bool:
        run.send_signal(number)
        return True

    return strike


def to_group(number: signal.Signals) -> Callable[[subprocess.Popen], bool]:
    def strike(run: subprocess.Popen) -> bool:
        os.killpg(run.pid, number)
        return True

    return strike


def to_worker(title: str) -> Callable[[subprocess.Popen], bool]:
    """SIGKILL to a Ray worker of that name."""

    def strike(run: subprocess.Popen) -> bool:
        for process in psutil.Process(run.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if line.startswith("ray::") and title in line:
                process.kill()
                return True
        return False

    return strike


LINES = 40  # of a log, where something is wrong: the cause stands above the last word
SAVED = r"is saved in .*|before a step was saved|[Nn]o checkpoint|nothing (is|was) (saved|lost)|goes on from there|begins again"
DIED = r"a process of the run died|error: "
FAULTS = (
    Fault("SIGTERM to the process", to_process(signal.SIGTERM), SAVED),
    Fault("SIGTERM to the group", to_group(signal.SIGTERM), SAVED),
    Fault("SIGINT to the group", to_group(signal.SIGINT), SAVED),
    Fault("SIGUSR1 to the process", to_process(signal.SIGUSR1), SAVED),
    Fault("SIGKILL to the process", to_process(signal.SIGKILL), None),
    Fault("SIGKILL to the group", to_group(signal.SIGKILL), None),
    Fault("the engine is killed", to_worker("HFServer"), DIED),
    Fault("the actor is killed", to_worker("WorkerDict"), DIED),
    Fault("a reward worker is killed", to_worker("RewardLoopWorker"), DIED),
)
# Overrides that a resume must refuse, and the key that the refusal must name.
CHANGES = (
    ("data.shuffle=false", "data.shuffle"),
    ("data.train_batch_size=4", "train_batch_size"),
    ("+data.train_max_samples=8", "train_max_samples"),
    ("fusion.seed=5", "fusion.seed"),
    ("actor_rollout_ref.rollout.n=2", "rollout.n"),
)


class Drill:
    """The world of the runs, and what has been found."""

    def __init__(self, world: World, draw: random.Random, deadline: float) -> None:
        self.world, self.draw, self.deadline = world, draw, deadline
        self.wrong: list[str] = []
        reward = world.home / "hostile.py"
        reward.write_text(REWARD, encoding="utf-8")
        self.flags = (
            "algorithm=hpt", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1", "trainer.test_freq=4",
            f"reward.custom_reward_function.path={reward}", "reward.protection.max_fault_share=0.9", "trainer.step_timeout=120",
            "trainer.worker_in_driver=false",  # one of the faults kills it
        )  # fmt: skip

    def report(self, text: str, wrong: str | None = None) -> None:
        sys.stdout.write(f"{text}{f'   WRONG: {wrong}' if wrong else ''}\n")
        sys.stdout.flush()
        if wrong:
            self.wrong.append(f"{text}: {wrong}")

    def undisturbed(self) -> tuple[float, float]:
        """Seconds of a run until its first checkpoint, and from there to its end."""
        begin = time.monotonic()
        run, first = self.world.start("alone", *self.flags), 0.0
        while run.poll() is None:
            time.sleep(0.05)
            if not first and complete(self.world, "alone"):
                first = time.monotonic() - begin
        if run.returncode:
            sys.exit(f"the undisturbed run exited with {run.returncode}\n{self.last_lines('alone')}")
        return first, time.monotonic() - begin - first

    def last_lines(self, name: str) -> str:
        return "\n".join(self.world.log(name).read_text(encoding="utf-8").strip().splitlines()[-LINES:])

    def strike(self, name: str, fault: Fault, after: float, in_training: bool) -> None:
        """Start or continue the run, do it so many seconds later or after its first new checkpoint, and see how it ends."""
        before = max(complete(self.world, name), default=0)
        run = self.world.start(name, *self.flags)
        begin = time.monotonic()
        while in_training and run.poll() is None and max(complete(self.world, name), default=0) == before:
            begin = time.monotonic()
            time.sleep(0.02)
        while run.poll() is None and time.monotonic() - begin < after:
            time.sleep(0.02)
        text = f"{name}, {fault.name} {after:.0f} s after {'its first new checkpoint' if in_training else 'its start'}"
        if run.poll() is not None or not fault.strike(run):
            run.wait(300)
            self.report(f"{text}: there was nothing to strike, exit code {run.returncode}", self._sound(name, run.returncode))
            return
        try:
            run.wait(300)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            self.report(text, "it did not end within 300 s")
            return
        lines = self.last_lines(name)
        silent = fault.says is not None and run.returncode != 0 and re.search(fault.says, lines) is None
        shown = lines.splitlines()[-1][:140] if fault.says and lines else ""
        self.report(f"{text}: exit code {run.returncode}. {shown}", f"its last lines do not say why:\n{lines}" if silent else None)

    def _sound(self, name: str, code: int) -> str | None:
        return None if code == 0 else f"it ended by itself with {code}:\n{self.last_lines(name)}"

    def change(self, name: str) -> None:
        """Resume with a setting that must stay: refused before Ray, by its key."""
        override, key = self.draw.choice(CHANGES)
        if not any(self.world.checkpoints(name).glob("global_step_*/unify_complete.json")):
            return
        done = self.world.train(name, *self.flags, override, check=False)
        refused = done.returncode == 1 and key in done.stderr.strip().splitlines()[-1] and "Started a local Ray" not in done.stderr
        text = f"{name}, resumed with {override}: exit code {done.returncode}"
        self.report(text, None if refused else f"not refused by its key:\n{done.stderr[-600:]}")

    def fill_disk(self, name: str) -> None:
        """Checkpoints on a disk that holds one; then there is room, and the run goes on."""
        disk = self.world.home / f"disk-{name}"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(disk)], capture_output=True)
        if mounted.returncode:
            self.report(f"{name}, a full disk: no permission to mount one, left out")
            return
        try:
            flags = (*self.flags, f"trainer.default_local_dir={disk}")
            done = self.world.train(name, *flags, check=False)
            said = done.returncode == 1 and "could not be written" in done.stderr.strip().splitlines()[-1]
            self.report(f"{name}, the disk is full: exit code {done.returncode}", None if said else done.stderr[-600:])
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
            done = self.world.train(name, *flags, check=False)
            self.report(f"{name}, there is room again: exit code {done.returncode}", self._equal(name, done))
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=False)

    def _equal(self, name: str, done: subprocess.CompletedProcess) -> str | None:
        if done.returncode:
            return f"exit code {done.returncode}: {done.stderr[-600:]}"
        found = differences(self.world, name)
        return "differs from the undisturbed run: " + "; ".join(found[:5]) if found else None

    def campaign(self, number: int, seconds: tuple[float, float]) -> None:
        """A run under faults until it has been struck often enough, then to its end."""
        name = f"run{number}"
        if number % 4 == 3:
            self.fill_disk(name)
            return
        for _ in range(self.draw.randint(2, 4)):
            if time.monotonic() > self.deadline:
                break
            in_training = self.draw.random() > AT_THE_START
            # A fifth of the way, so that a run is struck several times before its end.
            after = self.draw.uniform(0.0, seconds[1] / 5 if in_training else seconds[0])
            self.strike(name, self.draw.choice(FAULTS), after, in_training)
            if self.draw.random() < 0.4:
                self.change(name)
        done = self.world.train(name, *self.flags, check=False)
        self.report(f"{name}, left alone: exit code {done.returncode}", self._equal(name, done))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, it and its runs would ignore it
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(build_world(Path(folder)), random.Random(options.seed), 0.0)
        seconds = drill.undisturbed()
        drill.report(f"undisturbed: first checkpoint after {seconds[0]:.0f} s, {STEPS} steps after {sum(seconds):.0f} s")
        drill.deadline, number = time.monotonic() + 60 * options.minutes, 0
        while time.monotonic() < drill.deadline:
            number += 1
            drill.campaign(number, seconds)
    sys.stdout.write(f"{number} runs under faults; {len(drill.wrong)} wrong\n")
    if drill.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
