"""Signals and the clock: one request is heeded at the end of a step, two end the process, a hanging step is an error."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unify_posttrain.runs.signals import EXIT_INTERRUPTED, EXIT_REQUEUE, PreemptedError, StepTimeoutError, StopRequest, time_limit

STOPS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    """What `nohup` or a script's background has this process ignore is heeded here, as it is in a terminal."""
    ignored = [number for number in STOPS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGALRM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def test_the_exit_codes_are_those_for_try_again_and_for_ctrl_c() -> None:
    assert EXIT_REQUEUE == os.EX_TEMPFAIL == 75
    assert EXIT_INTERRUPTED == 130
    assert [PreemptedError("", number).exit_code for number in STOPS] == [75, 75, 130, 129]


@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_is_a_request(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    stop = StopRequest()
    with stop.listening():
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.signal is number
        os.kill(os.getpid(), number)  # `timeout` sends one to its child and one to the child's group: the same request
        assert stop.signal is number
    assert caplog.text.count(f"{number.name}: this step will be finished and saved") == 1


def test_leaving_says_what_was_asked_and_where_the_run_goes_on(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.signal = signal.SIGUSR1
    with pytest.raises(PreemptedError, match=rf"SIGUSR1: step 7 is saved in {tmp_path}; the same command goes on from there"):
        stop.leave(7, tmp_path)


@pytest.mark.parametrize("number", STOPS)
def test_outside_of_training_the_first_signal_ends_the_block(number: signal.Signals) -> None:
    said = r"while no step was being trained\. The last one is step 4\."
    with (
        pytest.raises(PreemptedError, match=rf"{number.name} {said}") as left,
        StopRequest(lambda: "The last one is step 4.").leaving(),
    ):
        os.kill(os.getpid(), number)
        pytest.fail("still here")
    assert left.value.exit_code == PreemptedError("", number).exit_code


def test_code_that_survives_faults_lets_a_request_pass() -> None:
    with pytest.raises(PreemptedError), StopRequest().leaving():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("swallowed")


def test_an_ignored_signal_stays_ignored() -> None:
    """A script starts its background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest().listening() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_process_with_a_line(second: signal.Signals) -> None:
    code = (
        "import os, signal\n"
        "from unify_posttrain.runs import signals\n"
        "signals.SAME_REQUEST_SECONDS = -1.0\n"
        "with signals.StopRequest(lambda: 'The last one is step 4.').listening():\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    print('still here', flush=True)\n"
        f"    os.kill(os.getpid(), {int(second)})\n"
        "    print('too late', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "still here\n" and done.returncode == -second
    assert done.stderr.strip().splitlines()[-1] == f"{second.name} again: ended at once. The last one is step 4."
    assert "Traceback" not in done.stderr


def test_a_terminal_that_is_gone_does_not_stop_the_saving(tmp_path: Path) -> None:
    """A pseudo-terminal that is closed: writing to it is an error from then on."""
    code = (
        "import os, signal, sys, time\n"
        "from unify_posttrain.runs.signals import StopRequest\n"
        "with StopRequest().listening() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop:\n"
        "        time.sleep(0.01)\n"
        "    print('a line of the step', flush=True)\n"
        "open(sys.argv[1], 'w').write('saved')\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, str(tmp_path / "checkpoint")]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)  # the kernel sends SIGHUP to the session
    assert process.wait() == 0 and (tmp_path / "checkpoint").read_text() == "saved"


@pytest.mark.slow
def test_timeout_signals_its_child_twice_and_that_is_one_request() -> None:
    """coreutils' own `timeout`, which signals the child and then the child's group."""
    code = (
        "import time, sys\n"
        "from unify_posttrain.runs.signals import StopRequest\n"
        "with StopRequest().listening() as stop:\n"
        "    while not stop:\n"
        "        pass\n"  # handlers run between any two steps of the interpreter
        "    end = time.monotonic() + 0.3\n"
        "    while time.monotonic() < end:\n"
        "        pass\n"
        "    sys.exit(75)\n"
    )
    done = subprocess.run(["timeout", "--preserve-status", "5", sys.executable, "-c", code], capture_output=True, text=True)
    assert "SIGTERM: this step will be finished" in done.stderr
    assert done.returncode == EXIT_REQUEUE and "again" not in done.stderr


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


@pytest.mark.parametrize("chained", ["cause", "context"])
def test_what_c_code_makes_of_a_signal_is_still_the_signal(chained: str) -> None:
    """A constructor written in C answers an exception within it by a SystemError of its own."""
    with pytest.raises(PreemptedError, match="SIGTERM while no step was being trained"), StopRequest().leaving():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except PreemptedError as raised:
            if chained == "cause":
                raise SystemError("returned a result with an exception set") from raised
            raise SystemError("returned a result with an exception set")  # noqa: B904
    with pytest.raises(StepTimeoutError, match="step 1 has taken more than"), time_limit(0.05, "step 1"):
        try:
            time.sleep(5)
        except StepTimeoutError as raised:
            raise SystemError("returned a result with an exception set") from raised
    with pytest.raises(SystemError, match="another"), StopRequest().leaving(), time_limit(5, "step 1"):
        raise SystemError("another")
