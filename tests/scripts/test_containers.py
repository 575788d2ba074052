"""docs/containers and `make install-gpu`: steps are the Makefile's, versions constraints-gpu.txt's, and what is missing is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
IMAGES = [ROOT / "docs" / "containers" / name for name in ("Dockerfile", "apptainer.def")]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12")
# What vLLM 0.12.0 asks for in other versions than those that the CPU tests run on.
OF_VLLM = {"torch", "torchvision", "triton", "setuptools"}


def pinned(file: str, python: str = "3.11") -> dict[str, str]:
    """Version by name on Linux, x86-64."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "platform_system": "Linux",
    }
    found = {}
    for line in (ROOT / file).read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert requirement.name not in found, f"{file} has two versions of {requirement.name} for Python {python}"
                found[requirement.name] = next(iter(requirement.specifier)).version
    return found


# constraints-gpu.txt


@pytest.mark.parametrize("python", PYTHONS)
def test_the_versions_for_gpus_are_within_the_bounds(python: str) -> None:
    pins, extras = pinned("constraints-gpu.txt", python), PROJECT["optional-dependencies"]
    (installed,) = re.findall(r"-c constraints-gpu\.txt -e '\.\[([\w,-]+)\]'", MAKEFILE)
    chosen = (*installed.split(","), "flash-attn")
    wanted = [*PROJECT["dependencies"], *(each for extra in chosen for each in extras[extra])]
    for requirement in map(Requirement, wanted):
        assert pins[requirement.name] in requirement.specifier, f"{requirement} is pinned to {pins[requirement.name]}"


@pytest.mark.parametrize(
    ("file", "document"),
    [
        ("constraints.txt", "CONTRIBUTING.md"),
        ("constraints-gpu.txt", "constraints-gpu.txt"),
        ("constraints-vllm.txt", "constraints-vllm.txt"),
    ],
)
def test_versions_are_resolved_with_the_extras_that_are_installed(file: str, document: str) -> None:
    """Without verl's own extra, what is resolved anew would be a tree without verl."""
    (command,) = re.findall(r"uv pip compile (.*?)pyproject\.toml", (ROOT / document).read_text(), flags=re.DOTALL)
    resolved = set(re.findall(r"--extra ([\w-]+)", command))
    installed = re.search(rf"-c {file} -e '\.\[([\w,-]+)\]'", MAKEFILE)
    assert resolved >= {"verl07", *(installed[1].split(",") if installed else ())}
    assert {"verl", "torch", "ray"} <= set(pinned(file))


@pytest.mark.parametrize("python", PYTHONS)
def test_what_both_environments_have_is_the_same(python: str) -> None:
    """So that what is tested on CPU says something about GPUs."""
    tested, gpu = pinned("constraints.txt", python), pinned("constraints-gpu.txt", python)
    assert len(set(tested) & set(gpu)) > 150
    assert {name for name in set(tested) & set(gpu) if tested[name] != gpu[name]} == OF_VLLM


# Images


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_the_steps_of_an_image_are_targets_of_the_makefile(image: Path) -> None:
    calls = re.findall(r'^(?:\s+|\s+&& )make ([a-z-]+)((?: \w+=(?:"[^"]*"|\S+))*)', image.read_text(), flags=re.MULTILINE)
    assert [target for target, _ in calls] == ["install-gpu"]
    for target, settings in calls:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)
        names = re.findall(r"(\w+)=", settings)
        assert names == ["PYTHON", "SKIP_FLASH_ATTN", "FLASH_ATTN_WHEEL"]
        assert all(re.search(rf"^{name} \?=", MAKEFILE, flags=re.MULTILINE) for name in names)


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_the_versions_of_an_image_are_those_that_are_installed(image: Path) -> None:
    text, runtime = image.read_text(), pinned("constraints-gpu.txt")["nvidia-cuda-runtime-cu12"]
    (cuda,) = re.findall(r"^F(?:ROM|rom:) nvidia/cuda:([\d.]+)-devel-", text, flags=re.MULTILINE)
    assert cuda.split(".")[:2] == runtime.split(".")[:2], "flash-attn is compiled by the nvcc of torch's CUDA"
    (python,) = set(re.findall(r"python(3\.\d+)", text))
    assert f"{python}.0" in SpecifierSet(PROJECT["requires-python"])
    environment = re.search(r"^GPU_VENV := (\S+)", MAKEFILE, flags=re.MULTILINE)
    assert environment is not None and f"/{environment[1]}/bin:$PATH" in text


def test_both_images_are_the_same() -> None:
    both = [path.read_text() for path in IMAGES]
    for pattern in (r"nvidia/cuda:\S+", r"no-install-recommends \\\n\s+(.*?)(?: \\)?\n", r"PYTHON=\S+"):
        docker, apptainer = (re.findall(pattern, text) for text in both)
        assert docker and docker == apptainer


def test_apptainer_copies_what_the_installation_reads() -> None:
    section = IMAGES[1].read_text().split("%files\n")[1].split("\n\n")[0]
    copied = {line.split()[0] for line in section.splitlines()}
    prerequisites = re.search(r"^\$\(GPU_STAMP\): (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert prerequisites is not None
    needed = {"Makefile", "unify_posttrain", "conf", PROJECT["readme"], *PROJECT["license-files"], *prerequisites[1].split()}
    assert copied == needed
    assert all((ROOT / name).exists() for name in copied)


# make install-gpu


@pytest.fixture
def install(tmp_path: Path):
    """install(nvcc=…, KEY=value) -> (exit code, output, calls of uv); the environment's programs only note their arguments."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make here")
    programs = tmp_path / "bin"
    environment = tmp_path / "environment" / "bin"
    for folder in (programs, environment):
        folder.mkdir(parents=True)
    for name in ("python", "uv"):
        stand_in(environment / name, f'echo {name} "$@" >> {tmp_path}/calls')
    for name in ("sh", "sed", "test", "touch", "grep"):  # and no nvcc of this machine
        (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")

    def run(nvcc: str | None = None, **settings: str) -> tuple[int, str, list[str]]:
        (programs / "nvcc").unlink(missing_ok=True)
        if nvcc is not None:
            stand_in(programs / "nvcc", f"echo 'Cuda compilation tools, release {nvcc}, V{nvcc}.1'")
        command = [make, "--no-print-directory", "install-gpu", f"GPU_VENV={environment.parent}"]
        done = subprocess.run(
            [*command, *(f"{name}={value}" for name, value in settings.items())],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={"PATH": str(programs), "HOME": str(tmp_path)},
        )
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done.returncode, done.stdout + done.stderr, [call for call in calls if call.startswith("uv")]

    return run


def stand_in(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def test_flash_attention_comes_after_everything_else(install) -> None:
    code, said, calls = install(nvcc="12.8")
    assert code == 0, said
    first, second, third = calls
    assert "-c constraints-gpu.txt -e .[verl07,vllm,vl,vrag,slurm,dev] wheel ninja" in first and "flash-attn" not in first
    assert "--no-build-isolation --no-deps -c constraints-gpu.txt flash-attn" in second
    assert third.endswith("-c constraints-gpu.txt einops")  # what flash-attn asks for besides torch
    assert "python -m unify_posttrain.doctor" in said
    assert install(nvcc="12.8")[2] == calls  # nothing is done twice


def test_a_wheel_needs_no_compiler(install, tmp_path: Path) -> None:
    wheel = tmp_path / "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl"
    code, said, calls = install(FLASH_ATTN_WHEEL=str(wheel))
    assert code == 2 and f"FLASH_ATTN_WHEEL={wheel} does not exist" in said and not calls
    wheel.touch()
    code, said, calls = install(FLASH_ATTN_WHEEL=str(wheel))
    assert code == 0, said
    assert calls[1].endswith(f"--no-build-isolation --no-deps {wheel}")  # of another build than the pinned one


def test_flash_attention_can_be_left_out(install) -> None:
    code, said, calls = install(SKIP_FLASH_ATTN="1")
    assert code == 0 and "without flash-attn" in said
    assert len(calls) == 1
    assert install(nvcc="12.8")[2][1].endswith("flash-attn")  # and added later


@pytest.mark.parametrize(
    ("nvcc", "error"),
    [
        (None, "flash-attn is built from source and nvcc (CUDA 12) is not there"),
        ("13.0", "nvcc is of CUDA 13, torch of CUDA 12: flash-attn cannot be built"),
        ("11.8", "nvcc is of CUDA 11, torch of CUDA 12"),
    ],
)
def test_what_is_missing_is_said_in_one_line_before_anything_is_installed(install, nvcc: str | None, error: str) -> None:
    code, said, calls = install(nvcc=nvcc)
    assert code == 2 and not calls
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert error in line and "SKIP_FLASH_ATTN=1" in line and "FLASH_ATTN_WHEEL=" in line


def test_the_compiler_is_that_of_cuda_home(install, tmp_path: Path) -> None:
    folder = tmp_path / "cuda" / "bin"
    folder.mkdir(parents=True)
    stand_in(folder / "nvcc", "echo 'Cuda compilation tools, release 12.8, V12.8.93'")
    code, said, _ = install(nvcc="13.0", CUDA_HOME=str(folder.parent))
    assert code == 0, said
    assert os.access(folder / "nvcc", os.X_OK)
