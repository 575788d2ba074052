"""Configuration: where `conf/` is, the resolvers that it uses, and composing it without a command line.

Nothing here imports torch, verl or ray, so `python -m unify_posttrain.train --cfg job` answers at once on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

PACKAGE = Path(__file__).resolve().parent
GROUPS = ("algorithm", "model", "task", "hardware")


def conf_dir() -> Path:
    """Absolute folder of `conf/`: inside the package when installed from a wheel, beside it in a checkout."""
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/train.yaml in {PACKAGE} or beside it; reinstall unify_posttrain")


def _verl_conf() -> str:
    """verl's own configuration folder, found without importing verl (which takes seconds and imports torch)."""
    spec = find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("verl is not installed; pip install verl==0.7.1")
    return str(Path(spec.submodule_search_locations[0]) / "trainer" / "config")


def _seed_key(value: Any, default: Any) -> Any:
    """A released spelling (such as trainer.switch_gate) if it is set, else our default."""
    return default if value is None else value


def _verl_agg(mode: str) -> str:
    """verl's name for an aggregation; it has no constant divisor, and uses the name for metrics only."""
    return "seq-mean-token-sum-norm" if mode == "sum-norm" else mode


def _part(whole: int, parts: int) -> int:
    """A fraction of a batch, as an integer of at least 1."""
    return max(1, int(whole) // int(parts))


def steps_of_episodes(episodes: int, prompts_per_step: int, accumulation: int = 1) -> int:
    """Training steps that see so many prompts, as Online SFT counts: max(1, ceil(episodes / prompts per step) // accumulation).

    >>> steps_of_episodes(30000, prompts_per_step=16)
    1875
    """
    return max(1, -(-int(episodes) // int(prompts_per_step)) // int(accumulation))


def _episode_steps(episodes: int | None, prompts_per_step: int, otherwise: int) -> int:
    return otherwise if episodes is None else steps_of_episodes(episodes, prompts_per_step)


def _ray_cpus(ranks: int) -> int:
    """Ray's CPU slots: a worker, an engine and an agent loop per rank, and the driver's own actors. Slots, not cores."""
    return max(4 * int(ranks) + 4, os.cpu_count() or 1)


def threads_per_rank(ranks: int) -> int:
    """Half of the cores, shared by the ranks. OpenMP threads spin while they wait: with as many as there are cores, any other
    process (Ray has several) costs not its share but an order of magnitude."""
    return max(1, len(os.sched_getaffinity(0)) // (2 * int(ranks)))


def register_resolvers() -> None:
    """Make the interpolations of `conf/` known to OmegaConf; harmless when repeated."""
    resolvers = {
        "verl_conf": _verl_conf,
        "conf_dir": lambda: str(conf_dir()),
        "seed_key": _seed_key,
        "verl_agg": _verl_agg,
        "part": _part,
        "episode_steps": _episode_steps,
        "ray_cpus": _ray_cpus,
        "threads_per_rank": lambda ranks: str(threads_per_rank(ranks)),  # an environment variable must be text
        "add": lambda *numbers: sum(numbers),
        "tokens_per_gpu": lambda prompt, response: 2 * (prompt + response),
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def check_choices(arguments: Sequence[str]) -> None:
    """Refuse an unknown choice of a group before Hydra does, listing ours only (verl's own files share the folder names).

    Raises:
        ValueError: e.g. for `algorithm=hpd`; lists the known ones and the nearest.
    """
    for argument in arguments:
        group, separator, choice = argument.partition("=")
        if separator and group in GROUPS:
            known = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
            if choice not in known:
                near = get_close_matches(choice, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{argument} is unknown; choose one of {', '.join(known)}{hint}")


def compose_config(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """Compose a configuration as the command line would, e.g. `compose_config(["algorithm=luffy", "model=qwen3_8b"])`."""
    register_resolvers()
    check_choices(overrides)
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(version_base=None, config_dir=str(conf_dir())):
        return compose(config_name=config_name, overrides=list(overrides))
