"""Which process of xdist takes which file, with `--dist loadfile`: one of them the end-to-end tests first, the others all the rest.

An end-to-end run waits for Ray's processes for a while and then needs more than a core. Beside tests that compute it fills the
pauses; two such runs on two cores wait for each other. xdist itself would begin with the files of many tests and keep all
end-to-end tests, of which a file has few, for the end.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

END_TO_END = "tests/e2e/"


class OneEndToEnd(LoadFileScheduling):
    """Files in the order of xdist, most tests first; from both ends of it when a process has no more of its own kind."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        first = node is self.nodes[0]
        files = list(self.workqueue)
        own = [file for file in files if file.startswith(END_TO_END) == first]
        self.workqueue.move_to_end(own[0] if own else files[-1], last=False)
        super()._assign_work_unit(node)
