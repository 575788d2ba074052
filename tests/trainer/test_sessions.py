"""Sessions of their own for what must outlive a signal to the run's process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from ray._private import services
from torchdata.stateful_dataloader import StatefulDataLoader

from unify_posttrain.trainer.sessions import apart, own_sessions


def test_rays_daemons_get_sessions_of_their_own_while_it_starts() -> None:
    """Every daemon is started by `start_ray_process`, which this calls as Ray does."""
    theirs = services.ConsolePopen
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with own_sessions():
        started = services.start_ray_process(command, "test", fate_share=False).process
    assert services.ConsolePopen is theirs
    inside = services.start_ray_process(command, "test", fate_share=False).process
    try:
        assert os.getsid(started.pid) == started.pid != os.getsid(0)
        assert os.getsid(inside.pid) == os.getsid(0), "without, they share the driver's, and this test would be of no use"
    finally:
        for process in (started, inside):
            process.kill()
            process.wait()


class Rows:
    """Rows that tell the session and process in which they were loaded."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> tuple[int, int]:
        return os.getsid(0), os.getpid()


def loader(workers: int = 1) -> StatefulDataLoader:
    """verl's class."""
    return StatefulDataLoader(Rows(), batch_size=1, num_workers=workers, collate_fn=lambda rows: rows[0])


def test_loading_processes_get_sessions_of_their_own() -> None:
    assert all(session == process != os.getsid(0) for session, process in apart(loader()))
    assert all(session == os.getsid(0) for session, _ in loader())
    assert all(process == os.getpid() for _, process in apart(loader(workers=0))), "nothing to be set where there are none"


def test_a_loader_apart_is_where_it_was_after_a_resume() -> None:
    whole = [tuple(each) for each in apart(loader())]
    first = apart(loader())
    rows = iter(first)
    next(rows)
    second = apart(loader())
    second.load_state_dict(first.state_dict())
    assert len(list(second)) == len(whole) - 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_does_not_end_the_loading(number: signal.Signals) -> None:
    """torch takes a loading process that dies for an error of the run. Signalled at once, while the processes come up."""
    code = f"""
import os, signal
from torch.utils.data import DataLoader
from unify_posttrain.runs.signals import StopRequest
from unify_posttrain.trainer.sessions import apart
class Rows:
    def __len__(self): return 8
    def __getitem__(self, row): return row
signal.signal({int(number)}, signal.SIG_DFL)  # a background of scripts has it ignored
with StopRequest().listening() as stop:
    rows = iter(apart(DataLoader(Rows(), batch_size=1, num_workers=2)))
    os.killpg(0, {int(number)})
    print([int(row) for row in rows], bool(stop))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4, 5, 6, 7] True", done.stderr[-2000:]
    assert done.returncode == 0 and number.name in done.stderr
