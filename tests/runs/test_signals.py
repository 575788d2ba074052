"""Signals and the clock: one request is heeded at the end of a step, two end the process, a hanging step is an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unify_posttrain.runs.signals import EXIT_REQUEUE, PreemptedError, StepTimeoutError, StopRequest, time_limit


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_exit_code_is_the_one_for_try_again() -> None:
    assert EXIT_REQUEUE == os.EX_TEMPFAIL == 75


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_is_a_request(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    stop = StopRequest()
    with stop.listening():
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.signal is number
    assert f"{number.name}: this step will be finished and saved" in caplog.text


def test_leaving_says_what_was_asked_and_where_the_run_goes_on(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.signal = signal.SIGUSR1
    with pytest.raises(PreemptedError, match=rf"SIGUSR1: step 7 is saved in {tmp_path}; the same command goes on from there"):
        stop.leave(7, tmp_path)


def test_the_second_signal_ends_the_process() -> None:
    code = (
        "import os, signal\n"
        "from unify_posttrain.runs.signals import StopRequest\n"
        "with StopRequest().listening():\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('too late', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "still here\n" and done.returncode == -signal.SIGTERM


def test_in_another_thread_there_are_no_handlers_and_no_limit() -> None:
    seen = []

    def work() -> None:
        with StopRequest().listening(), time_limit(0.001, "step 1"):
            time.sleep(0.05)
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


class Trainer:
    """The frames that a hanging step has on the stack."""

    def _fit_step(self) -> None:
        self._fit_generate()

    def _fit_generate(self) -> None:
        time.sleep(30)


def test_a_step_that_hangs_is_an_error_that_names_the_stage() -> None:
    message = r"step 7 has taken more than trainer\.step_timeout=0\.05 .*stage `generate`"
    with pytest.raises(StepTimeoutError, match=message), time_limit(0.05, "step 7"):
        Trainer()._fit_step()


def test_a_step_in_time_is_left_alone() -> None:
    with time_limit(0.05, "step 7"):
        pass
    time.sleep(0.1)  # the clock has been stopped
    with time_limit(None, "step 8"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
