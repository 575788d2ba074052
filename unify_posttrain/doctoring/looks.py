"""What each check looks at: collects the facts (`probes`) and hands them to the pure functions that judge them."""

from __future__ import annotations

import getpass
import importlib.metadata
import locale
import os
import platform
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import PACKAGE
from unify_posttrain.doctoring import gpus, host, packages, planned, probes
from unify_posttrain.doctoring.findings import Finding
from unify_posttrain.doctoring.subject import Subject
from unify_posttrain.startup.disk import contents_of
from unify_posttrain.startup.environment_checks import ENV_VARS, env_vars_problem, installed_trl
from unify_posttrain.startup.memory_plan import trained_actor, trained_critic
from unify_posttrain.tasks.environment import make_environment, servers
from unify_posttrain.tasks.episodes import episode_node

SMI_SECONDS = 10.0  # nvidia-smi wakes the driver up, which takes seconds where nothing keeps it awake
IMPORT_SECONDS = 12.0
QUOTA_SECONDS = 4.0
NETWORK_SECONDS = 3.0
DISTRIBUTION = "unify-posttrain"
FLASH_ATTENTION = "import flash_attn; from flash_attn.bert_padding import pad_input"


Check = Callable[[Subject], Iterable[Finding]]


# --- software -----------------------------------------------------------------------------------------------------------------


def _software(subject: Subject) -> Iterable[Finding]:
    installed, wanted = probes.installed_packages(), probes.requirements_of(DISTRIBUTION)
    supported = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] if wanted is not None else ">=3.10,<3.13"
    yield packages.check_python(platform.python_version(), supported)
    yield packages.check_requirements(installed, wanted, (packages.extra_of_verl(installed), *subject.extras))
    file = packages.fitting_constraints(installed, PACKAGE.parent)
    tested = None if file is None else packages.pins(file.read_text(encoding="utf-8"))
    yield packages.check_pins(installed, tested, packages.CONSTRAINTS if file is None else file.name)
    yield packages.check_trl(*installed_trl())
    asked = [each for each in probes.requirements_of("torch") or () if each.startswith("nvidia-nccl")]
    pinned = next((each.partition("==")[2].partition(";")[0].strip() for each in asked), None)
    nccl = next((version for name, version in installed.items() if name.startswith("nvidia-nccl-cu")), None)
    interfaces = sorted(name for _, name in socket.if_nameindex())
    yield packages.check_nccl(nccl, pinned, interfaces, os.environ, bool(subject.gpus_needed))


def _flash_attention(subject: Subject) -> Iterable[Finding]:
    version = probes.installed_packages().get("flash-attn")
    imported = probes.run([sys.executable, "-c", FLASH_ATTENTION], IMPORT_SECONDS) if version is not None else None
    yield packages.check_flash_attention(version, imported, subject.packs, IMPORT_SECONDS)


def _gpus(subject: Subject) -> Iterable[Finding]:
    found, needed = look_at_gpus(probes.run), subject.gpus_needed
    vllm = needed and subject.select("actor_rollout_ref.rollout.name") == "vllm"
    utilization = float(str(subject.select("actor_rollout_ref.rollout.gpu_memory_utilization"))) if vllm else None
    yield gpus.check_gpus(found, os.environ.get("CUDA_VISIBLE_DEVICES"), needed, utilization)
    yield gpus.check_driver(found, probes.torch_cuda(), needed)


def look_at_gpus(run: Callable[[list[str], float], probes.Ended | None]) -> gpus.Gpus:
    """What nvidia-smi says, with the time of all its calls limited together."""
    deadline, outputs = time.monotonic() + SMI_SECONDS, []
    for options in (gpus.QUERY, (), gpus.PROCESSES):
        ended = run(["nvidia-smi", *options], max(0.1, deadline - time.monotonic()))
        if ended is None:
            return gpus.Gpus()
        if ended.code is None:
            return gpus.Gpus(problem=f"nvidia-smi does not answer within {SMI_SECONDS:g} s")
        if ended.code != 0:
            said = (ended.out + ended.errors).strip().splitlines() or [""]
            return gpus.Gpus(problem=f"nvidia-smi ended with code {ended.code}: {said[0][:160]}")
        outputs.append(ended.out)
    return gpus.read_gpus(*outputs)


# --- the machine --------------------------------------------------------------------------------------------------------------


def _shared_memory(_: Subject) -> Iterable[Finding]:
    folder = Path("/dev/shm")
    yield host.check_shared_memory(
        probes.space(folder) if folder.is_dir() else None, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )


def _ray(subject: Subject) -> Iterable[Finding]:
    address = os.environ.get("RAY_ADDRESS", "")
    yield host.check_ports(probes.listeners(), joins=subject.before_ray or bool(address))
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()) / "ray"
    last, remembered_file = folder / "session_latest", folder / "ray_current_cluster"
    remembered = remembered_file.read_text(encoding="utf-8").strip() if os.access(remembered_file, os.R_OK) else ""
    remains = host.RayRemains(
        processes=probes.ray_processes(),
        folder=str(folder),
        owner=probes.user_name(folder.stat().st_uid) if folder.exists() else "",
        writable=os.access(folder if folder.exists() else probes.existing_parent(folder), os.W_OK),
        session_owner=probes.user_name(last.lstat().st_uid) if last.is_symlink() else "",
        remembered=remembered,
        remembered_answers=_answers(remembered),
    )
    counts = [subject.select(f"ray_kwargs.ray_init.num_{each}") for each in ("cpus", "gpus")]
    declares = None if subject.config is None else any(count is not None for count in counts)
    yield host.check_ray(remains, getpass.getuser(), address, _answers(address), declares, subject.before_ray)


def _reach(subject: Subject) -> Iterable[Finding]:
    if subject.config is None:
        return
    environment = os.environ
    mode, handed_on = environment.get("RAY_AUTH_MODE", ""), bool(subject.select("ray_kwargs.ray_init.address"))
    cluster = host.Cluster(
        nodes=int(str(subject.select("trainer.nnodes", 1))),
        joined=handed_on or bool(environment.get("RAY_ADDRESS")) or subject.before_ray,
        address=str(subject.select("ray_kwargs.ray_init._node_ip_address") or ""),
        # exp_scripts/slurm, which asks before it starts a cluster, gives that a token unless there is a mode already.
        mode=mode or ("token" if subject.before_ray else ""),
        token=any(environment.get(each) for each in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or (subject.before_ray and not mode),
    )
    yield host.check_reach(cluster)


def _answers(address: str) -> bool:
    """Whether something listens at host:port; other forms (ray://…, auto) count as if."""
    name, _, port = address.rpartition(":")
    return probes.connects(name, int(port), NETWORK_SECONDS) if name and port.isdigit() and "//" not in name else bool(address)


def _shell(subject: Subject) -> Iterable[Finding]:
    files, processes = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    yield host.check_limits(files, processes)
    yield host.check_threads(os.environ, len(os.sched_getaffinity(0)))
    if subject.config is not None:
        node = OmegaConf.select(subject.config, ENV_VARS)
        given = OmegaConf.to_container(node) if node is not None else {}
        yield planned.check_env_vars(env_vars_problem(subject.config), {str(name): "" for name in given})
    yield host.check_text(locale.getpreferredencoding(False), getattr(sys.stdout, "encoding", None) or "utf-8")
    yield host.check_clock(time.time(), max(path.stat().st_mtime for path in PACKAGE.glob("*.py")))


# --- what the run reads and writes --------------------------------------------------------------------------------------------


def _disk(subject: Subject) -> Iterable[Finding]:
    folder = probes.existing_parent(subject.run_dir)
    yield planned.check_folder(str(subject.run_dir), writing_error(folder))
    plan, saves = _plan(subject), subject.config is None or subject.config.trainer.save_freq > 0
    yield planned.check_disk(probes.space(folder), plan, saves)
    ended = probes.run(["quota", "--no-wrap", "--raw-grace"], QUOTA_SECONDS)
    wanted = None if plan.checkpoint is None else plan.kept * plan.checkpoint
    finding = planned.check_quota(None if ended is None else ended.out, wanted)
    if finding is not None:
        yield finding


def _plan(subject: Subject) -> planned.Plan:
    if subject.config is None:
        return planned.Plan(str(subject.run_dir), None)
    trainer = subject.config.trainer
    kept = planned.checkpoints_kept(trainer.max_actor_ckpt_to_keep, trainer.total_training_steps, trainer.save_freq)
    return planned.Plan(str(subject.run_dir), checkpoint_bytes(subject.config), kept)


def checkpoint_bytes(config: DictConfig) -> float | None:
    """Of one checkpoint, as the dry run says; None: the number of the model's weights is not known.

    What an algorithm's class would tell, which imports torch, is read off its configuration: an estimator that asks a critic, a
    node with an optimizer of its own.
    """
    actor = trained_actor(config)
    if actor is None:
        return None
    critic = trained_critic(config) if config.algorithm.adv_estimator == "gae" else None
    nodes = [node for node in config.fusion.values() if isinstance(node, DictConfig)]
    return sum(contents_of(config, actor, critic, any(node.get("optimizer") == "separate" for node in nodes)).values())


def writing_error(folder: Path) -> str | None:
    """Why no file can be written there; tried, because permissions say nothing about quotas and squashed users."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"doctor")
            file.flush()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _inputs(subject: Subject) -> Iterable[Finding]:
    if subject.config is None:
        return
    from unify_posttrain.startup.inputs import missing_files, missing_model

    mistake, missing = None, []
    try:
        missing = [(each.what, each.command) for each in (*missing_files(subject.config), *missing_model(subject.config))]
    except ValueError as error:
        mistake = str(error)
    yield planned.check_data(missing, mistake)


def _episodes(subject: Subject) -> Iterable[Finding]:
    node = None if subject.config is None else episode_node(subject.config)
    if node is None:
        return
    try:
        make_environment(node)
    except ValueError as error:
        yield planned.check_servers({}, str(error))
        return
    yield planned.check_servers({server: _listens(server.url) for server in servers(node)})


def _hub(subject: Subject) -> Iterable[Finding]:
    from huggingface_hub import constants, get_token

    absent: list[tuple[str, str]] = []
    if subject.config is not None:
        from unify_posttrain.startup.inputs import downloads

        absent = [(each.what, each.command) for each in downloads(subject.config)]
        yield from _model(subject)
    reachable = _reaches(constants.ENDPOINT) if absent and not constants.HF_HUB_OFFLINE else None
    cache = constants.HF_HUB_CACHE.replace(str(Path.home()), "~", 1)
    hub = planned.Hub(cache, bool(constants.HF_HUB_OFFLINE), bool(get_token()), reachable)
    yield planned.check_hub(hub, absent, asked=subject.config is not None)


def _reaches(endpoint: str) -> bool:
    """Whether the hub's address can be connected to; through a proxy, whether the proxy can."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    return _listens(getproxies().get(urlsplit(endpoint).scheme) or endpoint)


def _listens(url: str) -> bool:
    """Whether something does at its host and port; environments ask their servers without a proxy."""
    from urllib.parse import urlsplit

    address = urlsplit(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    return bool(address.hostname) and probes.connects(str(address.hostname), port, NETWORK_SECONDS)


def _model(subject: Subject) -> Iterable[Finding]:
    """The weights, where a config.json of the model is on this disk."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from unify_posttrain.startup.inputs import DOWNLOAD

    name = str(subject.select("actor_rollout_ref.model.path"))
    folder, remedy = Path(name).expanduser(), "copy or export it again"
    if not folder.is_dir():
        try:
            cached = try_to_load_from_cache(name, "config.json")
        except HFValidationError:
            return
        if not isinstance(cached, str):
            return
        folder, remedy = Path(cached).parent, f"{DOWNLOAD} {name}"
    if (folder / "config.json").is_file():
        lacking = planned.missing_weights(folder) or planned.damaged_weights(folder)
        yield planned.check_model(name, lacking, remedy)
        code = planned.code_of(folder, bool(subject.select("actor_rollout_ref.model.trust_remote_code")))
        if code is not None:
            yield planned.check_model(
                name, code, "take a folder without, or trust it: actor_rollout_ref.model.trust_remote_code=true"
            )
    else:
        yield planned.check_model(name, "no config.json", remedy)


CHECKS: tuple[Check, ...] = (
    *(_software, _flash_attention, _gpus, _shared_memory, _disk, _ray, _reach, _inputs, _episodes, _hub, _shell),
)
