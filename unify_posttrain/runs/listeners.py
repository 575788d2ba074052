"""Where a run listens: at the loopback address on one node, and who may connect to its Ray cluster.

Whoever reaches a port of Ray can run code as its user. A run on one node that starts a cluster of its own therefore gives it the
address 127.0.0.1, which the servers of verl and vLLM take over from it, and a secret of its own that every call must carry. A
cluster that is there already (RAY_ADDRESS, `ray_init.address`, one that `ray start` left) and an address that the user gives are
left as they are; SECURITY.md says what is open then. Imports no Ray.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

LOOPBACK = "127.0.0.1"
# Ray's own switch for laptops, whose firewalls ask about every port: its node is 127.0.0.1, and nothing listens elsewhere. Read
# when Ray is imported, by this process and by all that it starts.
RAY_BEYOND_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"  # torch's gloo, which otherwise takes the one that the host's name leads to
LOOPBACK_INTERFACE = "lo"
AUTH_MODE, AUTH_TOKEN, AUTH_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TOKEN_BYTES = 32


def stays_on_loopback(nodes: int, ray_init: Mapping[str, Any]) -> bool:
    """Whether a run that starts its own cluster may listen at the loopback address alone.

    Args:
        nodes: trainer.nnodes.
        ray_init: what the user gives to `ray.init`; an address there is obeyed.
    """
    return nodes == 1 and ray_init.get("_node_ip_address") is None


def loopback_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that keep a run's processes on loopback; what the user has set in the environment (this process's) stays."""
    environment = os.environ if environment is None else environment
    wanted = {RAY_BEYOND_LOOPBACK: "0", GLOO_INTERFACE: LOOPBACK_INTERFACE}
    return {name: value for name, value in wanted.items() if not environment.get(name)}


def ensure_token(environment: MutableMapping[str, str] | None = None) -> None:
    """Give the clusters of this process a secret of their own, unless the user has one or wants none.

    Without it Ray keeps one secret for all clusters of a user in a file of the home folder, which others may be able to read. It
    stays in the environment (this process's, if no other is given): Ray reads it once per process.
    """
    environment = os.environ if environment is None else environment
    if environment.get(AUTH_MODE, "token") == "token" and not any(environment.get(name) for name in (AUTH_TOKEN, AUTH_PATH)):
        environment[AUTH_TOKEN] = secrets.token_hex(TOKEN_BYTES)


@contextmanager
def variables(added: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment while a run lasts; a sweep goes on in this process with a cluster of its own for every run."""
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
