"""Checks of what a run will read and write: disk, run folder, data, models, the hub, Ray's environment variables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unify_posttrain.doctoring.findings import Finding, green, red, some, yellow
from unify_posttrain.doctoring.probes import Space
from unify_posttrain.tasks.turns import Server
from unify_posttrain.untrusted.documents import read_object
from unify_posttrain.untrusted.folders import leads_out
from unify_posttrain.untrusted.remote_code import custom_code
from unify_posttrain.untrusted.weights import check_files

KEPT = 2  # checkpoints at a time if their number is not bounded: the newest, and the one that is being written
SPARE = 20e9  # bytes that a disk should have whatever the model is
FILES_LEAST = 10_000
WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class Plan:
    """What a configuration will write.

    Attributes:
        run_dir: where its checkpoints go.
        checkpoint: bytes of one, None if unknown.
        kept: checkpoints on the disk at a time.
    """

    run_dir: str
    checkpoint: float | None
    kept: int = KEPT


def checkpoints_kept(limit: int | None, steps: int | None, frequency: int) -> int:
    """How many checkpoints are on the disk at the worst moment.

    Args:
        limit: trainer.max_actor_ckpt_to_keep, None or 0: all. An old one is deleted after the new one is complete.
        steps: of the run, None if they follow from the data.
        frequency: trainer.save_freq.
    """
    if limit:
        return limit + 1
    return max(1, -(-steps // frequency)) if steps and frequency > 0 else KEPT


def check_disk(space: Space, plan: Plan, saves: bool = True) -> Finding:
    """Free space against the checkpoints of the run.

    Args:
        saves: whether the configuration writes any.
    """
    name, free = "disk", f"{space.free / 1e9:.0f} GB free for {plan.run_dir}"
    remedy = "free space, set UNIFY_HOME to another disk, or trainer.max_actor_ckpt_to_keep=1"
    if space.files is not None and space.files < FILES_LEAST:
        return yellow(name, f"{space.files} more files fit on the disk of {plan.run_dir}", "delete small files, or UNIFY_HOME=…")
    if not saves:
        return green(name, f"{free}; trainer.save_freq writes no checkpoint")
    if plan.checkpoint is None:
        found = f"{free}; the size of a checkpoint is unknown"
        return yellow(name, found, remedy) if space.free < SPARE else green(name, found)
    wanted = plan.kept * plan.checkpoint
    found = f"{free}; {plan.kept} checkpoint(s) of {plan.checkpoint / 1e9:.3g} GB"
    if space.free < plan.checkpoint:
        return red(name, found, remedy)
    return yellow(name, found, remedy) if space.free < wanted else green(name, found)


def check_quota(listing: str | None, wanted: float | None) -> Finding | None:
    """What `quota --no-wrap --raw-grace` says, in KiB; None: nothing to say.

    Args:
        listing: None if there is no such program, or it did not answer.
        wanted: bytes that the run will write, None if unknown.
    """
    name, tight = "quota", []
    for line in (listing or "").splitlines():
        fields = line.split()
        numbers = [each.rstrip("*") for each in fields[-8:]]
        if len(fields) < 9 or not all(each.isdigit() for each in numbers):
            continue
        used, soft, hard = (int(each) * 1024 for each in numbers[:3])
        limit = hard or soft
        if limit and limit - used < (wanted or SPARE):
            tight.append(f"{(limit - used) / 1e9:.1f} GB left of {limit / 1e9:.0f} GB on {fields[0]}")
    if tight:
        return yellow(name, some(tight), "free space there, or set UNIFY_HOME and HF_HOME to another disk")
    return green(name, "far from every limit") if listing and "limit" in listing else None


def check_folder(folder: str, error: str | None) -> Finding:
    """Whether a file could be written where the run goes."""
    if error is None:
        return green("folder", f"{folder} can be written")
    return red("folder", f"{folder}: {error}", "set UNIFY_HOME or trainer.run_dir to a folder that you may write to")


def check_data(missing: Sequence[tuple[str, str]], mistake: str | None) -> Finding:
    """The files that the run reads.

    Args:
        missing: (what, the command that makes it).
        mistake: about a path that nothing writes.
    """
    if mistake is not None:
        return red("data", mistake, "correct the path")
    if missing:
        return red("data", "not there: " + some([what for what, _ in missing], shown=1), missing[0][1])
    return green("data", "all files are there")


def check_servers(answers: Mapping[Server, bool], mistake: str | None = None) -> Finding:
    """What the run's environment asks while it plays.

    Args:
        answers: whether something listens at the address of each.
        mistake: the environment refuses its settings, or lacks what they name.
    """
    name, silent = "environment", [server for server, answered in answers.items() if not answered]
    if mistake is not None:
        return red(name, mistake, "correct the setting")
    if silent:
        judge = yellow if all(server.instead for server in silent) else red
        found = [f"nothing answers at {server.key}={server.url}{server.instead and f': {server.instead}'}" for server in silent]
        return judge(name, some(found), "start the server, or correct its address")
    return green(name, f"answers: {some([server.url for server in answers])}" if answers else "asks no server")


@dataclass(frozen=True)
class Hub:
    """The hub as this environment sees it. `reachable`: None if it was not tried."""

    cache: str
    offline: bool
    token: bool
    reachable: bool | None = None


def check_hub(hub: Hub, absent: Sequence[tuple[str, str]], asked: bool) -> Finding:
    """Models that are not in the cache, and whether they can come.

    Args:
        absent: (what, the command that fetches it).
        asked: whether there is a configuration.
    """
    name, facts = "hub", f"cache {hub.cache}, HF_TOKEN {'set' if hub.token else 'not set'}{', offline' if hub.offline else ''}"
    if not absent:
        return green(name, f"{'nothing to download; ' if asked else ''}{facts}")
    what, command = some([what for what, _ in absent]), absent[0][1]
    if hub.offline:
        return red(name, f"{what} not in the cache and HF_HUB_OFFLINE is set; {facts}", f"where there is a network: {command}")
    if not hub.reachable:
        return red(name, f"{what} not in the cache and the hub does not answer; {facts}", f"where there is a network: {command}")
    return yellow(name, f"{what} will be downloaded when the run starts; {facts}", f"before the job: {command}")


def missing_weights(folder: Path) -> str | None:
    """What a folder of transformers with a config.json lacks of its weights."""
    names = [name for name in WEIGHTS if (folder / name).is_file()]
    if not names:
        return None if any(folder.glob("*.safetensors")) else "no weights"
    if not names[0].endswith(".json"):
        return None
    try:
        files = {str(file) for file in read_object(folder / names[0])["weight_map"].values()}
    except (ValueError, KeyError, AttributeError):
        return f"an unreadable {names[0]}"
    if any(leads_out(file) for file in files):
        return f"{names[0]} names files outside of the folder"
    gone = sorted(each for each in files if not (folder / each).is_file())
    return f"{len(gone)} of {len(files)} files of weights missing" if gone else None


def damaged_weights(folder: Path) -> str | None:
    """What is wrong with weights that are all there: a file cut short, an index that does not fit."""
    try:
        check_files(folder, "weights", allow_pickle=True)
    except ValueError as error:
        return str(error)
    return None


def code_of(folder: Path, trusted: bool) -> str | None:
    """Code that a folder asks for and that nobody trusts."""
    try:
        found = None if trusted else custom_code(folder)
    except ValueError as error:
        return str(error)
    return found and f"{found[0].name} asks for code of the folder ({found[1]}), which a run refuses"


def check_model(path: str, lacking: str | None, command: str) -> Finding:
    """The weights of a folder, or of a cached download that may have been cut short."""
    if lacking is None:
        return green("model", path)
    return red("model", f"{path}: {lacking}", command)


def check_env_vars(problem: tuple[str, str] | None, environment: Mapping[str, str] | None = None) -> Finding:
    """What is given to Ray's processes (`startup.environment_checks.env_vars_problem`)."""
    if problem is not None:
        return red("env_vars", *problem)
    names = sorted(environment or {})
    return green("env_vars", f"text: {some(names)}" if names else "none")
