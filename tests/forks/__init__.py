"""Commands of the tests, forked from a process that has imported what they import.

Most of a short run of `python -m unify_posttrain.train` is imports: its own, and those of the processes that Ray starts. A fork
server (`server.py`), one per test process, has imported torch, verl, ray and transformers, and forks a child for every command that
is asked of it; Ray's workers come from a fork of that child (`workers.py`). Modules of this package are not among what is imported
before, so they run from their first line, as in the real command.

    done = run([sys.executable, "-m", "unify_posttrain.train", …], …)      # as subprocess.run
    process = Popen([sys.executable, "-m", "unify_posttrain.train", …], …)  # as subprocess.Popen

The child is a child of the caller, with the arguments, environment, working directory, standard streams, session and exit code that
`subprocess` would give it. Two things differ. /proc/PID/cmdline and environ are the server's, and hashes of strings have one seed
in all children. A test that looks at those, or at when something is imported, takes `subprocess` (`alone=True` in tests/e2e).
`Popen` does so by itself where the server has imported under other conditions: another interpreter, or another value of a variable
that libraries read while they are imported.
"""

from tests.forks.client import Popen, heed_ctrl_c, run

__all__ = ["Popen", "heed_ctrl_c", "run"]
