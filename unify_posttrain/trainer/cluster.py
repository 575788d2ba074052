"""The Ray cluster of a run: joined or started, and where it listens.

A cluster takes some two seconds to start, of which this process only waits. It imports verl's trainer meanwhile.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import ray
from omegaconf import DictConfig, OmegaConf
from ray._private import parameter, ray_constants, services
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

from unify_posttrain.runs import listeners
from unify_posttrain.trainer.sessions import own_sessions

logger = logging.getLogger(__name__)

T = TypeVar("T")
START_ATTEMPTS = 3
NODE_SECONDS = 30.0  # as long as Ray waits for its node
RAY_TIMED_OUT = "timed out during startup"
# Every worker guards its logs as this process does.
SETUP_HOOK = "unify_posttrain.output.guard_logs"
RAY_VARIABLES = {
    # Ray remembers 100,000 calls, a few hundred MB after a thousand steps, for a dashboard that nobody has open.
    "RAY_task_events_max_num_task_in_gcs": "10000",
    # Processes that Ray starts before anybody asks for one. All that a run asks for have variables of their own, which these lack.
    "RAY_prestart_worker_first_driver": "0",
    # Raylet asks its own store before that listens, and then sleeps: 20 ms instead of a second, and for ten seconds all the same.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}


@contextmanager
def own_cluster(config: DictConfig) -> Iterator[None]:
    """What a cluster that this run starts itself may listen to (`runs.listeners`). One that is there is joined as it is."""
    given = config.ray_kwargs.get("ray_init", {})
    if joins_cluster(given):
        yield
        return
    listeners.ensure_token()
    loopback = listeners.stays_on_loopback(config.trainer.nnodes, given)
    before = ray_constants.ENABLE_RAY_CLUSTER
    try:
        with listeners.variables(listeners.loopback_variables() if loopback else {}):
            # Ray has read its variable when it was imported; the processes that it starts read it themselves.
            ray_constants.ENABLE_RAY_CLUSTER = before and os.environ.get(listeners.RAY_BEYOND_LOOPBACK) != "0"
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def joins_cluster(ray_init: Mapping[str, Any]) -> bool:
    """Whether `ray.init` would join a cluster: the user's, RAY_ADDRESS, or one that `ray start` left behind."""
    address = ray_init.get("address") or os.environ.get("RAY_ADDRESS")
    if address:
        return bool(address != "local")
    return services.find_bootstrap_address(ray_init.get("_temp_dir")) is not None


def start_ray(config: DictConfig) -> None:
    """What verl's `run_ppo` would do, which prints these settings, secrets included. Ray waits 30 s, not more, for its own node to
    come up; on a busy laptop that is not enough every time."""
    given = OmegaConf.to_container(config.ray_kwargs.get("ray_init", OmegaConf.create()), resolve=True)
    runtime_env = OmegaConf.merge(get_ppo_ray_runtime_env(), given.pop("runtime_env", None) or {})
    runtime_env.setdefault("worker_process_setup_hook", SETUP_HOOK)
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            with own_sessions(), only_what_a_run_needs():
                ray.init(**given, runtime_env=OmegaConf.to_container(runtime_env))
            return
        except Exception as error:
            if RAY_TIMED_OUT not in str(error) or attempt == START_ATTEMPTS:
                raise
            logger.warning("Ray did not start in time (the machine is busy); trying again")
            ray.shutdown()


@contextmanager
def only_what_a_run_needs() -> Iterator[None]:
    """Of what Ray starts by itself on one machine.

    Its autoscaler has nothing to scale, and answers no request to end, for which `ray.shutdown` waits a second. A dashboard under
    `include_dashboard=false` serves nothing, and Ray waits until it is there. Agents all want one port: beside another cluster on
    the machine an agent waits for it for three seconds, and Ray for the agent. Ray asks for its own node too early, and sleeps for
    a second before it asks again.
    """
    params, dashboard, node = parameter.RayParams, services.start_api_server, services.get_node

    def start_api_server(include_dashboard: bool | None, *arguments: Any, **more: Any) -> Any:
        # What Ray's own function returns where a dashboard that nobody insists on does not start.
        return (None, None) if include_dashboard is False else dashboard(include_dashboard, *arguments, **more)

    parameter.RayParams = partial(params, dashboard_agent_listen_port=0, no_monitor=True)

    def get_node(address: str, identifier: str) -> Any:
        _wait_for_node(address, identifier)
        return node(address, identifier)

    services.start_api_server, services.get_node = start_api_server, get_node
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server, services.get_node = params, dashboard, node


def _wait_for_node(address: str, identifier: str) -> None:
    """Until the cluster knows the node. One that never comes is left to Ray, which then says what it knows."""
    known = ray._private.state.GlobalState()
    known._initialize_global_state(services._get_gcs_client_options(address))
    deadline = time.monotonic() + NODE_SECONDS
    while time.monotonic() < deadline and identifier not in (each["NodeID"] for each in known.node_table()):
        time.sleep(0.02)
    known.disconnect()


@contextmanager
def running(config: DictConfig, first: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Start Ray while something else goes on, and what is wanted `first` of it; shut it down at the end. What is yielded waits for
    both, returns what `first` has returned, and raises what went wrong.

    The thread that starts Ray lives as long as Ray: the kernel ends Ray's daemons when the thread that started them ends. An error
    in the meantime waits until Ray has started: nobody could shut down a cluster that is half there.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray") as thread:

        def begin() -> T:
            start_ray(config)
            return first()

        start = thread.submit(begin)
        try:
            yield start.result
        finally:
            wait([start])
            ray.shutdown()  # a sweep goes on in this process, with a cluster of its own for every run
