"""Ray gives its own node 30 s to come up; a machine that is busy gets another chance, other errors do not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
from omegaconf import DictConfig, OmegaConf
from ray._private import parameter, services
from verl.utils import tracking

from tests.hostile import HOSTILE, acting, assert_harmless
from unify_posttrain.trainer import cluster, launch

TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


class Starts:
    """Stands for `ray.init`: raises the given errors in turn, then returns; remembers what it was given."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.given: list[dict[str, Any]] = []
        self.params: list[parameter.RayParams] = []
        self.dashboards: list[Any] = []

    def __call__(self, **arguments: Any) -> None:
        self.given.append(arguments)
        self.params.append(parameter.RayParams())
        self.dashboards += [services.start_api_server(included, False) for included in (False, None, True)]
        if self.errors:
            raise self.errors.pop(0)


def dashboard(include_dashboard: bool | None, raise_on_failure: bool) -> str:
    """Stands for what starts it."""
    return f"a dashboard: {include_dashboard}"


def config(**ray_init: Any) -> DictConfig:
    return OmegaConf.create({"ray_kwargs": {"ray_init": ray_init}})


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    found = Starts()
    monkeypatch.setattr(cluster.ray, "init", found)
    monkeypatch.setattr(services, "start_api_server", dashboard)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    return found


def test_a_slow_start_is_tried_again(starts: Starts, caplog: pytest.LogCaptureFixture) -> None:
    starts.errors = [Exception(TIMED_OUT)] * (cluster.START_ATTEMPTS - 1)
    cluster.start_ray(config())
    assert len(starts.given) == cluster.START_ATTEMPTS
    assert "Ray did not start in time" in caplog.text


def test_not_for_ever(starts: Starts) -> None:
    starts.errors = [Exception(TIMED_OUT)] * 99
    with pytest.raises(Exception, match="timed out during startup"):
        cluster.start_ray(config())
    assert len(starts.given) == cluster.START_ATTEMPTS


def test_another_error_is_not_tried_again(starts: Starts) -> None:
    starts.errors = [ValueError("no such address")]
    with pytest.raises(ValueError, match="no such address"):
        cluster.start_ray(config(address="10.0.0.1:6379"))
    assert len(starts.given) == 1


def test_settings_reach_ray_and_none_of_them_the_output(
    starts: Starts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    variables = {"WANDB_API_KEY": "hush", "NCCL_DEBUG": "INFO"}
    cluster.start_ray(config(num_cpus=6, num_gpus=2, runtime_env={"env_vars": variables}))
    (given,) = starts.given
    assert given["num_cpus"] == 6 and given["num_gpus"] == 2
    environment = given["runtime_env"]["env_vars"]
    assert environment["WANDB_API_KEY"] == "hush" and environment["NCCL_DEBUG"] == "INFO", "the user's win over verl's"
    assert environment["TOKENIZERS_PARALLELISM"] == "true", "verl's own are kept"
    assert given["runtime_env"]["worker_process_setup_hook"] == "unify_posttrain.output.guard_logs", (
        "workers' logs are guarded, too"
    )
    assert "hush" not in "".join(capsys.readouterr())


def test_ray_starts_what_a_run_needs(starts: Starts) -> None:
    """No autoscaler, which a shutdown would wait for; no dashboard that serves nothing; agents take any port that is free (0)."""
    usual = parameter.RayParams
    cluster.start_ray(config())
    (given,) = starts.params
    assert given.dashboard_agent_listen_port == 0 and given.no_monitor is True
    assert usual().dashboard_agent_listen_port != 0 and usual().no_monitor is False
    assert starts.dashboards == [(None, None), "a dashboard: None", "a dashboard: True"]
    assert parameter.RayParams is usual and services.start_api_server is dashboard


class Cluster:
    """Stands for what Ray knows of a cluster: the node is there when it has been asked for a few times."""

    def __init__(self, comes_after: float) -> None:
        self.asked, self.comes_after = 0, comes_after

    def _initialize_global_state(self, options: str) -> None:
        assert options == "options of 127.0.0.1:1"

    def node_table(self) -> list[dict[str, str]]:
        self.asked += 1
        return [{"NodeID": "another"}, *([{"NodeID": "ours"}] if self.asked > self.comes_after else [])]

    def disconnect(self) -> None:
        pass


@pytest.mark.parametrize("comes_after", [0, 3, float("inf")])
def test_the_node_is_asked_for_when_it_is_there(comes_after: float, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray asks at once, and a second later again; one that never comes is left to it."""
    known, found = Cluster(comes_after), []

    def node(address: str, identifier: str) -> dict[str, int]:
        found.append((address, identifier, known.asked))
        return {"node_manager_port": 7}

    monkeypatch.setattr(services, "get_node", node)
    monkeypatch.setattr(services, "_get_gcs_client_options", lambda address: f"options of {address}")
    monkeypatch.setattr("ray._private.state.GlobalState", lambda: known)
    monkeypatch.setattr(cluster, "NODE_SECONDS", 0.5)
    with cluster.only_what_a_run_needs():
        assert services.get_node("127.0.0.1:1", "ours") == {"node_manager_port": 7}
    ((address, identifier, asked),) = found
    assert (address, identifier) == ("127.0.0.1:1", "ours") and services.get_node is node
    assert asked == comes_after + 1 if comes_after < 4 else asked > 4


@pytest.mark.slow
def test_a_cluster_of_a_run_works_and_is_gone_at_once(tmp_path: Path) -> None:
    """In a process of its own. The names of processes are those of Ray's daemons."""
    program = """
import time, psutil, ray
from omegaconf import OmegaConf
from unify_posttrain.trainer.cluster import start_ray

start_ray(OmegaConf.create({"ray_kwargs": {"ray_init": {"num_cpus": 1, "include_dashboard": False}}}))
print(ray.get(ray.remote(lambda: 42).remote()))
daemons = psutil.Process().children(recursive=True)
print(*sorted({part.rpartition("/")[2] for each in daemons for part in each.cmdline()[:4] if "ray/" in part}))
ray.shutdown()
print(*(each.cmdline() for each in psutil.wait_procs(daemons, timeout=20)[1]))
"""
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()
    assert found[0] == "42" and {"gcs_server", "raylet"} <= set(found[1].split())
    assert not {"monitor.py", "dashboard.py"} & set(found[1].split())
    assert found[2] == "", "left behind"


def test_the_hook_of_workers_exists_and_the_users_own_stays(starts: Starts) -> None:
    module, _, function = cluster.SETUP_HOOK.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))
    cluster.start_ray(config(runtime_env={"worker_process_setup_hook": "mine.hook"}))
    assert starts.given[0]["runtime_env"]["worker_process_setup_hook"] == "mine.hook"


def test_something_else_goes_on_while_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that has started Ray is there until Ray is shut down, or the kernel would end Ray's daemons with it. It is not the
    main thread, in which Ray would replace our handler of SIGTERM."""
    going_on, threads, down = threading.Event(), [], []

    def init(**_: Any) -> None:
        assert going_on.wait(60), "Ray started first"
        threads.append(threading.current_thread())

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: down.append(threads[0].is_alive()))
    with cluster.running(config(), threading.current_thread) as started:
        going_on.set()
        assert started() is threads[0], "what is wanted first begins before anybody asks, as soon as Ray is there"
        assert threads[0].is_alive() and threads[0] is not threading.main_thread()
    assert down == [True] and len(threads) == 1


def test_what_ray_says_is_raised_and_an_error_meanwhile_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: happened.append("down"))
    monkeypatch.setattr(cluster, "start_ray", lambda _: time.sleep(0.2) or happened.append("up"))
    with pytest.raises(KeyError, match="mine"), cluster.running(config(), dict):
        raise KeyError("mine")
    assert happened == ["up", "down"]
    monkeypatch.setattr(cluster, "start_ray", lambda given: given.no_such_address)
    with pytest.raises(AttributeError), cluster.running(DictConfig({}, flags={"struct": True}), dict) as started:
        started()
    assert happened == ["up", "down", "down"]


# Trackers


def test_trackers_are_given_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(tracking.Tracking, "__init__", lambda self, **arguments: given.update(arguments, argv=sys.argv[1:]))
    monkeypatch.setattr(tracking.Tracking, "__del__", lambda self: None)
    monkeypatch.setattr(sys, "argv", ["train", "+env.HF_TOKEN=abc", "a=1"])
    with launch.redacted_arguments():
        launch.RedactedTracking(project_name="p", experiment_name="e", config={"trainer": {}, "env": {"HF_TOKEN": "abc", "A": "1"}})
    assert given["config"] == {"trainer": {}, "env": {"HF_TOKEN": "<redacted>", "A": "1"}} and given["project_name"] == "p"
    assert given["argv"] == ["+env.HF_TOKEN=<redacted>", "a=1"] and sys.argv[1:] == ["+env.HF_TOKEN=abc", "a=1"]


def test_a_proxy_with_a_password_is_used_and_not_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(tracking.Tracking, "__init__", lambda self, **arguments: given.update(arguments))
    monkeypatch.setattr(tracking.Tracking, "__del__", lambda self: None)
    monkeypatch.setenv(launch.WANDB_PROXY, "x")
    monkeypatch.delenv(launch.WANDB_PROXY)
    launch.RedactedTracking(config={"trainer": {"wandb_proxy": "http://me:hunter2@proxy:3128"}})
    assert given["config"] == {"trainer": {"wandb_proxy": None}}
    assert wandb.Settings().https_proxy is None and os.environ[launch.WANDB_PROXY] == "http://me:hunter2@proxy:3128"
    launch.RedactedTracking(config={"trainer": {"wandb_proxy": "http://proxy:3128"}})
    assert given["config"] == {"trainer": {"wandb_proxy": "http://proxy:3128"}}


def test_names_of_data_sources_are_printed_harmlessly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl's console logger prints a line of all metrics; those of a validation are named after the data's sources."""
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    tracker = launch.RedactedTracking(
        project_name="p", experiment_name="e", default_backend=["console", "file"], config={"trainer": {}}
    )
    tracker.log(data={f"val-core/{HOSTILE}/acc/mean@1": 0.5, "actor/loss": 1.0}, step=3)
    printed = capsys.readouterr().out
    assert_harmless(printed)
    assert "actor/loss:1.0" in printed
    assert acting((tmp_path / "metrics.jsonl").read_text()) == set()


@pytest.mark.slow
def test_a_real_tracker_writes_no_secret(tmp_path: Path) -> None:
    """wandb without a network and tensorboard, told what a run tells them, from a process with a secret on its command line."""
    secret = "nobody-guesses-this-1"
    code = (
        "from unify_posttrain.trainer import launch\n"
        f"config = {{'trainer': {{'x': 'https://me:{secret}@h'}}, 'env': {{'MY_PASSWORD': '{secret}'}}}}\n"
        "with launch.redacted_arguments():\n"
        "    t = launch.RedactedTracking("
        "project_name='p', experiment_name='e', default_backend=['wandb', 'tensorboard'], config=config)\n"
        "    t.log({'a': 1.0}, step=1)\n"
        "    t.logger['wandb'].finish()\n"
    )
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TENSORBOARD_DIR": str(tmp_path / "tb")}
    done = subprocess.run(
        [sys.executable, "-c", code, f"+env.MY_PASSWORD={secret}"], env=environment, capture_output=True, text=True, timeout=600,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written) and any("tfevents" in path.name for path in written)
    assert [path.name for path in written if secret.encode() in path.read_bytes()] == []
