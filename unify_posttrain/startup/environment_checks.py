"""What ends a run only after Ray has started: packages that verl cannot live with, and Ray's environment variables.

Reads files of installed packages and imports none of them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

ENV_VARS = "ray_kwargs.ray_init.runtime_env.env_vars"
# verl.models.transformers.monkey_patch, in every worker:
#     if is_trl_available(): from trl import AutoModelForCausalLMWithValueHead
# TRL 0.28 still exports it, 0.29 does not.
TRL_CLASS, TRL_DROPPED = "AutoModelForCausalLMWithValueHead", "0.29"


def check_environment(config: DictConfig) -> None:
    """Refuse what would end the run in Ray or in a worker.

    Raises:
        ValueError: names key or package, and the remedy.
    """
    for problem in (env_vars_problem(config), trl_problem(*installed_trl())):
        if problem is not None:
            raise ValueError("; ".join(problem))


def env_vars_problem(config: DictConfig) -> tuple[str, str] | None:
    """What is wrong with the environment variables for Ray's processes, and the remedy. Ray takes text only, with a TypeError after
    it has started; on a command line 2 is a number."""
    node = OmegaConf.select(config, ENV_VARS)
    values = OmegaConf.to_container(node, resolve=True) if node is not None else {}
    for name, value in values.items():
        if not isinstance(value, str):
            shown = str(value).lower() if isinstance(value, bool) else value
            return f"{ENV_VARS}.{name}={shown} must be text", f"""write it with quotes: '{ENV_VARS}.{name}="{shown}"'"""
    return None


def installed_trl() -> tuple[str | None, bool]:
    """Version of TRL, None if it is not installed, and whether it still exports the class that verl patches."""
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        return None, True
    try:
        installed = version("trl")
    except PackageNotFoundError:
        installed = "of unknown version"
    return installed, TRL_CLASS in Path(spec.origin).read_text(encoding="utf-8", errors="replace")


def trl_problem(installed: str | None, exported: bool) -> tuple[str, str] | None:
    """What is wrong with the TRL beside verl, and the remedy."""
    if installed is None or exported:
        return None
    return (
        f"trl {installed} is installed and has no {TRL_CLASS}, which verl imports wherever it finds trl",
        f"pip uninstall trl, or pip install 'trl<{TRL_DROPPED}'",
    )
