"""Checks of the GPUs: how many, what occupies them, and whether the driver is new enough for torch. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unify_posttrain.doctoring.findings import Finding, green, red, some, yellow

QUERY = ("--query-gpu=index,uuid,name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits")
PROCESSES = ("--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits")
OCCUPIED = 1024  # MiB that a GPU without a process does not use


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi lists it; memory in MiB."""

    index: str
    uuid: str
    name: str
    total: int
    used: int


@dataclass(frozen=True)
class Gpus:
    """All of a machine. `problem`: why nvidia-smi has nothing to say; None with an empty `listed`: there is no nvidia-smi."""

    listed: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""
    processes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problem: str | None = None


def read_gpus(listing: str, header: str, processes: str) -> Gpus:
    """What three calls of nvidia-smi say: `QUERY`, none (its header has the driver's CUDA version), `PROCESSES`.

    Raises:
        ValueError: a listing of another form.
    """
    listed, driver = [], ""
    for line in filter(str.strip, listing.splitlines()):
        index, uuid, name, total, used, driver = (each.strip() for each in line.split(","))
        listed.append(Gpu(index, uuid, name, int(total), int(used)))
    found: dict[str, tuple[str, ...]] = {}
    for line in filter(str.strip, processes.splitlines()):
        uuid, number, *_ = (each.strip() for each in line.split(","))
        found[uuid] = (*found.get(uuid, ()), number)
    cuda = re.search(r"CUDA (?:\w+ )?Version:\s*([\d.]+)", header)
    return Gpus(tuple(listed), driver, cuda[1] if cuda else "", found)


def visible(gpus: Sequence[Gpu], chosen: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, by index or uuid, up to the first that does not exist, as CUDA does."""
    if chosen is None:
        return list(gpus)
    found: list[Gpu] = []
    for each in filter(None, (part.strip() for part in chosen.split(","))):
        fitting = [gpu for gpu in gpus if gpu.index == each or (not each.isdigit() and gpu.uuid.startswith(each))]
        if not fitting:
            break
        found += fitting[:1]
    return found


def check_gpus(gpus: Gpus, chosen: str | None, needed: int | None, utilization: float | None = None) -> Finding:
    """Their number, and what of their memory is taken.

    Args:
        chosen: CUDA_VISIBLE_DEVICES.
        needed: how many the configuration wants per node; None: there is no configuration.
        utilization: share of a GPU that vLLM will take.
    """
    name = "gpus"
    if gpus.problem is not None:
        judge = yellow if needed == 0 else red
        return judge(name, gpus.problem, "look at nvidia-smi and the kernel's log; the node may need a restart")
    seen = visible(gpus.listed, chosen)
    if len(seen) < (needed or 0):
        limit = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen})"
        return red(
            name,
            f"{len(seen)} visible{limit}, trainer.n_gpus_per_node={needed}",
            "another node, more GPUs from the scheduler, or hardware=gpu_1 or hardware=cpu",
        )
    if not seen:
        if needed == 0:
            return green(name, "none; none needed")
        return yellow(name, "none", "only hardware=cpu and hardware=cpu_vllm run here")
    if needed == 0:
        return green(name, f"{_named(seen)}; none needed")
    share = [gpu.used / gpu.total for gpu in seen]
    busy = [
        f"GPU {gpu.index}: {gpu.used} MiB used"
        + (f" by process {', '.join(numbers)}" if (numbers := gpus.processes.get(gpu.uuid)) else "")
        for gpu in seen
        if gpu.used > OCCUPIED or gpus.processes.get(gpu.uuid)
    ]
    remedy = "end these processes (nvidia-smi names them; those of other users or containers may have no number)"
    if utilization is not None and max(share) > 1 - utilization:
        return red(name, f"{some(busy)}; vLLM will ask for {utilization:.0%} of each GPU", remedy)
    if busy:
        return yellow(name, some(busy), remedy)
    return green(name, _named(seen))


def _named(gpus: Sequence[Gpu]) -> str:
    kinds = sorted({(gpu.name, gpu.total) for gpu in gpus})
    return ", ".join(f"{sum((g.name, g.total) == kind for g in gpus)} x {kind[0]}, {kind[1] / 1024:.0f} GiB" for kind in kinds)


def check_driver(gpus: Gpus, built: str | None, needed: int | None) -> Finding:
    """The driver's CUDA version against the one that torch was built with.

    Since CUDA 11 a driver runs all minor versions of its major one, but compiles no PTX of a newer one, which some kernels need.

    Args:
        built: '' for a torch without CUDA, None if there is no torch.
    """
    name = "cuda"
    if built is None:
        return red(name, "torch is not installed", "make install, or make install-gpu")
    if not gpus.listed:
        return green(name, f"torch for {f'CUDA {built}' if built else 'CPU'}; no driver to compare with")
    if not built:
        judge = yellow if needed == 0 else red
        return judge(name, "torch was built without CUDA", "make install-gpu")
    if not gpus.cuda:
        return yellow(name, f"torch for CUDA {built}; nvidia-smi names no CUDA version", "compare by hand: nvidia-smi")
    found = f"torch for CUDA {built}, driver {gpus.driver} for {gpus.cuda}"
    have, want = (tuple(int(part) for part in each.split(".")[:2]) for each in (gpus.cuda, built))
    if have[0] < want[0]:
        return red(name, found, f"update the driver to one for CUDA {built}")
    if have < want:
        return yellow(
            name, found, f"it runs, but kernels that are compiled on the spot may fail; a driver for CUDA {built} is better"
        )
    return green(name, found)
