"""verl's group of workers, which asks for less where the cluster is this machine."""

from __future__ import annotations

from typing import Any

import ray
from verl.single_controller.ray import RayWorkerGroup
from verl.single_controller.ray.base import get_master_addr_port


class FusionWorkerGroup(RayWorkerGroup):
    """Finds the place where its ranks meet in this process, if no other machine can be meant. verl starts one of Ray's for it, and
    the workers wait until it has imported Ray, looked and ended."""

    def _get_master_addr_port(self, pg: Any, *args: Any, master_port_range: list[int] | None = None, **kwargs: Any) -> None:
        if self._master_addr is None and [node["NodeID"] for node in ray.nodes() if node["Alive"]] == [here()]:
            self._master_addr, self._master_port = get_master_addr_port._function(master_port_range)
        super()._get_master_addr_port(pg, *args, master_port_range=master_port_range, **kwargs)


def here() -> str:
    """The node of this process."""
    return str(ray.get_runtime_context().get_node_id())
