"""Checks of the machine beside its GPUs: shared memory, ports, Ray's remains, limits, text, clock. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from unify_posttrain.doctoring.findings import Finding, green, red, some, yellow
from unify_posttrain.doctoring.probes import RayProcess, Space, is_loopback

GIB = 2**30
SHM_LEAST = GIB  # NCCL's and the data loader's buffers; Docker gives 64 MiB
SHM_SHARE = 0.3  # of the memory: what Ray takes for its object store
RAY_PORT, DASHBOARD_PORT, CLIENT_PORT = 6379, 8265, 10001
FILES_LEAST, FILES_GOOD = 1024, 8192
PROCESSES_GOOD = 4096
CLOCK_TOLERANCE = 86400.0  # seconds that a file may be newer than now


def check_shared_memory(shm: Space | None, memory: int) -> Finding:
    """/dev/shm, where Ray keeps its objects and NCCL its buffers.

    Args:
        shm: None if there is none.
        memory: bytes of the machine.
    """
    name = "/dev/shm"
    remedy = "docker run --shm-size=64g (or --ipc=host); elsewhere mount -o remount,size=… /dev/shm"
    if shm is None:
        return red(name, "there is none", remedy)
    found = f"{shm.free / GIB:.1f} of {shm.total / GIB:.1f} GiB free"
    if shm.free < SHM_LEAST:
        return red(name, found, remedy)
    if shm.free < SHM_SHARE * memory:
        return yellow(name, f"{found}, less than Ray's object store wants ({SHM_SHARE * memory / GIB:.1f} GiB): slower", remedy)
    return green(name, found)


def check_ports(listening: Mapping[int, set[str]], joins: bool) -> Finding:
    """The ports that Ray takes by itself, and whether one of them can be reached from elsewhere.

    Args:
        listening: addresses by port.
        joins: whether the run takes no port, because a cluster is there or is started on other ports.
    """
    name, ours = "ports", (RAY_PORT, DASHBOARD_PORT, CLIENT_PORT)
    exposed = [f"{port} at {', '.join(sorted(out))}" for port in ours if (out := _outside(listening.get(port, ())))]
    if exposed:
        return yellow(
            name,
            f"listening for other machines: {some(exposed)}",
            "if it is Ray, whoever reaches it runs code as its user: ray stop, or a firewall, or RAY_AUTH_MODE=token",
        )
    taken = [str(port) for port in (RAY_PORT, DASHBOARD_PORT) if port in listening]
    if taken and not joins:
        return yellow(
            name, f"{', '.join(taken)} in use", "ray start --head needs --port=…; a run alone takes another one by itself"
        )
    others = sum(bool(_outside(addresses)) for addresses in listening.values())
    return green(name, f"{RAY_PORT} and {DASHBOARD_PORT} free; {others} other port(s) listen beyond loopback")


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that a run will use.

    Attributes:
        nodes: trainer.nnodes.
        joined: it is there, or the caller starts it; else the run starts one.
        address: `_node_ip_address` that the user gives to `ray.init`, '' for none.
        mode: RAY_AUTH_MODE, '' if not set.
        token: whether a token was given (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH).
    """

    nodes: int
    joined: bool
    address: str = ""
    mode: str = ""
    token: bool = False


def check_reach(cluster: Cluster) -> Finding:
    """Who can connect to the cluster of a run: whoever can, runs code as its user."""
    name, guarded = "listeners", cluster.mode == "token" and cluster.token
    remedy = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=… before ray start on every node, and a firewall: SECURITY.md, Listeners"
    if not cluster.joined:
        whose = "without a token" if cluster.mode not in ("", "token") else "with a token of its own"
        where = cluster.address or ("127.0.0.1 alone" if cluster.nodes == 1 else "every interface")
        found = f"the run's own cluster listens at {where}, {whose}"
        exposed = not where.startswith("127.") and whose == "without a token"
        return yellow(name, found, "unset RAY_AUTH_MODE") if exposed else green(name, found)
    if guarded:
        return green(name, "the cluster asks for a token; its ports, NCCL's and the stores of torch listen at every interface")
    return yellow(name, "whoever reaches the ports of the Ray cluster runs code as its user: no token in this environment", remedy)


def _outside(addresses: Sequence[str] | set[str]) -> list[str]:
    return [address for address in addresses if not is_loopback(address)]


@dataclass(frozen=True)
class RayRemains:
    """What is left of Ray on this machine.

    Attributes:
        folder, owner, writable: its temporary folder, whose it is ('' if it does not exist), and whether this user may write there.
        processes: that run.
        session_owner: of the last session, '' if there is none.
        remembered: the address of a cluster that `ray start` left for every `ray.init`, '' without one.
        remembered_answers: whether something listens there.
    """

    folder: str
    processes: Sequence[RayProcess] = ()
    owner: str = ""
    writable: bool = True
    session_owner: str = ""
    remembered: str = ""
    remembered_answers: bool = False


def check_ray(remains: RayRemains, user: str, address: str | None, answers: bool, declares: bool | None, before: bool) -> Finding:
    """A cluster that is there, or what a dead one left.

    Args:
        user: who runs this.
        address: RAY_ADDRESS; None or '': not set.
        answers: whether something listens there.
        declares: whether the configuration gives ray.init counts, which it refuses beside a running cluster; None: there is none.
        before: the caller starts a cluster of its own afterwards.
    """
    name = "ray"
    if not remains.writable:
        return red(name, f"{remains.folder} belongs to {remains.owner}", "set RAY_TMPDIR to a short path on a local disk")
    running = [f"{each.name} {each.number} of {each.user}" for each in remains.processes]
    if address and not before:
        if not answers:
            return red(name, f"RAY_ADDRESS={address} does not answer", "unset RAY_ADDRESS, or start the cluster")
        return green(name, f"RAY_ADDRESS={address} answers")
    if remains.remembered and not before:
        found = f"ray start left the address {remains.remembered}, which ray.init would join"
        if not remains.remembered_answers:
            return red(name, f"{found}; nothing answers there", "ray stop, which forgets it")
        if declares:
            return red(
                name,
                f"{found} and then refuses counts of CPUs and GPUs",
                "ray stop, or ray_kwargs.ray_init.num_cpus=null ++ray_kwargs.ray_init.num_gpus=null",
            )
        return yellow(name, found, "ray stop, if a cluster of its own is wanted")
    own = [each for each in remains.processes if each.user == user]
    if own:
        return yellow(name, f"running: {some(running)}", "ray stop, if no run of yours is using it")
    if running:
        return yellow(name, f"running: {some(running)}", f"if they cost memory or GPUs, ask {remains.processes[0].user}")
    if remains.session_owner not in ("", user):
        return yellow(
            name,
            f"the last session in {remains.folder} is of {remains.session_owner}",
            "set RAY_TMPDIR to a short path on a local disk",
        )
    return green(name, "nothing runs, nothing is left")


def check_limits(files: int, processes: int) -> Finding:
    """ulimit -n and -u; -1 is unlimited."""
    name, found = "limits", f"{_limit(files)} open files, {_limit(processes)} processes"
    remedy = "ulimit -n 65536 -u 65536 before the run, or in /etc/security/limits.conf; LimitNOFILE in slurmd's unit"
    if 0 <= files < FILES_LEAST:
        return red(name, found, remedy)
    if 0 <= files < FILES_GOOD or 0 <= processes < PROCESSES_GOOD:
        return yellow(name, f"{found}; Ray on many cores wants {FILES_GOOD} files and {PROCESSES_GOOD} processes", remedy)
    return green(name, found)


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else str(value)


def check_threads(environment: Mapping[str, str], cores: int) -> Finding:
    """OMP_NUM_THREADS of this shell, which Ray hands on to its workers."""
    name, given = "threads", environment.get("OMP_NUM_THREADS")
    if given is None:
        return green(name, f"OMP_NUM_THREADS is not set; {cores} core(s)")
    if not given.strip().isdigit() or int(given) < 1:
        return red(name, f"OMP_NUM_THREADS={given} is no number of threads", "export OMP_NUM_THREADS=1, or unset it")
    if int(given) > cores:
        return yellow(name, f"OMP_NUM_THREADS={given} on {cores} core(s): threads wait for each other", "export OMP_NUM_THREADS=1")
    return green(name, f"OMP_NUM_THREADS={given}; {cores} core(s)")


def check_text(encoding: str, output: str) -> Finding:
    """Encodings of files and of what is printed."""
    wrong = {each for each in (encoding, output) if each.lower().replace("-", "") not in ("utf8", "utf8sig")}
    if wrong:
        return yellow(
            "text", f"{', '.join(sorted(wrong))} is not UTF-8: Greek letters and tables break", "export PYTHONUTF8=1 LC_ALL=C.UTF-8"
        )
    return green("text", "UTF-8")


def check_clock(now: float, newest: float) -> Finding:
    """The clock against the youngest file of the package: a wrong one breaks certificates and the order of checkpoints."""
    shown = datetime.fromtimestamp(now, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    if newest > now + CLOCK_TOLERANCE:
        return yellow("clock", f"{shown}, before this package was installed", "set the clock: timedatectl set-ntp true")
    return green("clock", shown)
