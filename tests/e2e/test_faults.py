"""What goes wrong in production, done to the processes of real runs: each ends in recovery or in a clear error, and nothing that
was saved is lost. (A SIGKILL: test_checkpoints.py. Rewards that hang, crash or eat memory: tests/rewards.)"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from unify_posttrain.runs import state
from unify_posttrain.runs.lineage import lineage_in
from unify_posttrain.runs.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

from .conftest import ROOT, TIMING, World

pytestmark = pytest.mark.e2e

RUN = ("algorithm=hpt", "trainer.total_training_steps=4", "trainer.save_freq=1", "trainer.test_freq=2")
LONG = ("algorithm=hpt", "trainer.total_training_steps=20000", "trainer.save_freq=2")


@pytest.fixture(scope="module")
def whole(world: World) -> World:
    world.train("sound", *RUN)
    return world


def processes(run: subprocess.Popen, name: str) -> list[psutil.Process]:
    """Ray workers of a run whose title contains a word, e.g. `HFServer`; at least one, or the fault would be done to nobody."""
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and name in title:
            found.append(process)
    assert found, f"the run has no worker {name}"
    return found


def ended(world: World, name: str, run: subprocess.Popen, timeout: float = 200) -> str:
    """Output of a run that must end by itself."""
    try:
        run.wait(timeout)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    return world.log(name).read_text()


def untimed(metrics: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {step: {k: v for k, v in entry.items() if not k.startswith(TIMING)} for step, entry in metrics.items()}


def assert_as_undisturbed(whole: World, name: str) -> None:
    """Every metric of the four steps is that of the sound run, times apart."""
    before, after = untimed(whole.metrics("sound")), untimed(whole.metrics(name))
    assert sorted(after) == [1, 2, 3, 4]
    for step in before:
        different = {k: (after[step].get(k), v) for k, v in before[step].items() if after[step].get(k) != v}
        assert not different, f"step {step}: {different}"


def test_preempted_run_saves_and_continues_exactly(whole: World) -> None:
    """Asked to leave within step 2, whose checkpoint is not due and whose validation is: both are made up for."""
    steps = (*RUN, "trainer.save_freq=50")
    run = whole.start("preempted", *steps)
    whole.wait_for_step(run, "preempted", 1)
    run.send_signal(signal.SIGUSR1)
    log = ended(whole, "preempted", run)
    assert run.returncode == EXIT_REQUEUE, log[-4000:]
    saved = [folder.name for folder in whole.checkpoints("preempted").glob("global_step_*")]
    assert len(saved) == 1 and f"is saved in {whole.checkpoints('preempted') / saved[0]}" in log
    assert 1 <= int(saved[0].removeprefix("global_step_")) < 4
    whole.train("preempted", *steps)
    assert_as_undisturbed(whole, "preempted")


def left_over(name: str, seconds: float = 30) -> list[str]:
    """Processes that a run has left behind, known by a variable that they inherit; those that are about to end get time for it."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("UNIFY_TEST_RUN") == name and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_a_signal_to_the_whole_process_group_saves_and_leaves_nothing_behind(whole: World) -> None:
    """What `timeout` and job limits send. Ray's daemons, the workers and the engine live on until the driver has saved."""
    steps = (*RUN, "trainer.save_freq=50")
    run = whole.start("group", *steps, UNIFY_TEST_RUN="group")
    whole.wait_for_step(run, "group", 1)
    sessions = {os.getsid(process.pid) for process in processes(run, "")}
    assert sessions and os.getsid(run.pid) not in sessions
    os.killpg(run.pid, signal.SIGTERM)
    log = ended(whole, "group", run)
    assert run.returncode == EXIT_REQUEUE, log[-4000:]
    (saved,) = [folder.name for folder in whole.checkpoints("group").glob("global_step_*")]
    assert f"SIGTERM: step {saved.removeprefix('global_step_')} is saved in {whole.checkpoints('group') / saved}" in log
    assert left_over("group") == []
    whole.train("group", *steps)
    assert_as_undisturbed(whole, "group")


def test_a_fresh_run_in_a_used_folder_is_a_run_of_its_own(whole: World) -> None:
    """Its first checkpoints have lower numbers than the old run's; one is kept. Then Ctrl-C, and a resume at another rate."""
    folder, rate = whole.home / "runs" / "reused", "actor_rollout_ref.actor.optim.lr"
    shutil.copytree(whole.home / "runs" / "sound", folder)
    old, old_run = (folder / "metrics.jsonl").read_bytes(), lineage_in(folder).run
    fresh = (*LONG, "trainer.test_freq=-1", "trainer.max_actor_ckpt_to_keep=1")
    run = whole.start("reused", *fresh, "trainer.resume_mode=disable", UNIFY_TEST_RUN="reused")
    while lineage_in(folder).run == old_run and run.poll() is None:  # until then the lines are the old run's
        time.sleep(0.05)
    whole.wait_for_step(run, "reused", 2)
    second = whole.train("reused", *fresh, check=False)
    assert second.returncode == 1 and f"is in use: process {run.pid} on host" in second.stderr.strip().splitlines()[-1]
    assert "Started a local Ray instance" not in second.stderr
    os.killpg(run.pid, signal.SIGINT)
    log = ended(whole, "reused", run)
    assert run.returncode == EXIT_INTERRUPTED, log[-4000:]
    assert "Traceback" not in log
    (saved,) = whole.checkpoints("reused").glob("global_step_*")
    step = int(saved.name.removeprefix("global_step_"))
    last = log.strip().splitlines()[-1]
    assert f"SIGINT: step {step} is saved in {saved}; the same command with trainer.resume_mode=auto goes on from there" in last
    assert left_over("reused") == []
    assert sorted(whole.metrics("reused")) == list(range(1, step + 1)), "no line of the old run"
    earlier = folder / "earlier" / old_run
    assert (earlier / "metrics.jsonl").read_bytes() == old
    assert [state.damage(earlier / "checkpoints" / f"global_step_{number}") for number in (1, 2, 3, 4)] == [None] * 4

    done = whole.train("reused", *fresh, f"{rate}=5e-5", f"trainer.total_training_steps={step + 1}")
    assert f"used from the next step on: {rate} 0.0001 -> 5e-05" in done.stdout + done.stderr
    metrics = whole.metrics("reused")
    assert sorted(metrics) == list(range(1, step + 2))
    assert metrics[step]["actor/lr"] == 1e-4 and metrics[step + 1]["actor/lr"] == 5e-5
    states = [json.loads((path / state.STATE).read_text()) for path in whole.checkpoints("reused").glob("global_step_*")]
    assert [each["global_step"] for each in states] == [step + 1]
    assert states[0]["run"] == lineage_in(folder).run != old_run


def test_rollout_server_dies_after_a_damaged_checkpoint(whole: World) -> None:
    """The newest checkpoint has one changed byte: the one before is taken. Then the server is killed: a clear end."""
    shutil.copytree(whole.home / "runs" / "sound", whole.home / "runs" / "orphaned")
    weights = next((whole.checkpoints("orphaned") / "global_step_4" / "actor").glob("model_*.pt"))
    with open(weights, "r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    run = whole.start("orphaned", *LONG, "trainer.test_freq=-1")
    whole.wait_for_step(run, "orphaned", 5)
    (server,) = processes(run, "HFServer")
    server.kill()
    log = ended(whole, "orphaned", run)
    assert f"the content of {weights.name} has changed since it was written" in log
    assert run.returncode == 1
    last = log.strip().splitlines()[-1]
    assert last.startswith("error: a process of the run died") and "the same command goes on from there" in last


def test_one_rank_computes_nan_and_a_reward_process_hangs(whole: World) -> None:
    """A NaN on rank 1 costs both ranks that optimizer step and nothing else; a stopped reward process ends in an error."""
    run = whole.start(
        "troubled",
        *LONG,
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.model.external_lib=tests.e2e.faulty",
        "reward.num_workers=2",
        "trainer.step_timeout=20",
        UNIFY_TEST_NAN="1:2",
        PYTHONPATH=str(ROOT),
    )
    whole.wait_for_step(run, "troubled", 4)
    for worker in processes(run, "RewardLoopWorker"):
        worker.send_signal(signal.SIGSTOP)
    log = ended(whole, "troubled", run)
    metrics = whole.metrics("troubled")
    assert [metrics[step]["fusion/grad_skipped"] for step in (1, 2, 3, 4)] == [0.0, 2.0, 0.0, 0.0]  # both mini-batches of update 2
    assert all(value == value for entry in metrics.values() for key, value in entry.items() if key.startswith("val-")), "finite"
    assert "non-finite log-probabilities in groups" in log
    assert run.returncode == 1
    last = log.strip().splitlines()[-1]
    assert "has taken more than trainer.step_timeout=20 seconds; it is in the stage `generate`" in last, log[-3000:]
    assert "global_step_" in last


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds one checkpoint of the tiny model (about 1.3 MB) and not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2000k", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no permission to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_full_while_saving(world: World, small_disk: Path) -> None:
    run = ("algorithm=grpo", "trainer.total_training_steps=3", "trainer.save_freq=1", f"trainer.default_local_dir={small_disk}")
    done = world.train("full", *run, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "global_step_2 could not be written" in last and "were free on its disk" in last
    assert f"The last complete checkpoint is {small_disk / 'global_step_1'}" in last
    assert [folder.name for folder in small_disk.glob("global_step_*")] == ["global_step_1"], "the torn one is gone"
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    world.train("full", *run)
    assert sorted(world.metrics("full")) == [1, 2, 3]


def test_changed_data_is_refused(whole: World) -> None:
    shutil.copytree(whole.home / "runs" / "sound", whole.home / "runs" / "changed")
    data = whole.home / "data" / "arithmetic" / "train.parquet"
    content = data.read_bytes()
    import pandas as pd

    try:
        pd.read_parquet(data).iloc[::-1].to_parquet(data)
        done = whole.train("changed", *RUN, "trainer.total_training_steps=8", check=False)
    finally:
        data.write_bytes(content)
    assert done.returncode == 1
    assert "data.train_files" in done.stderr and "trainer.experiment_name" in done.stderr
    assert "Started a local Ray instance" not in done.stderr
