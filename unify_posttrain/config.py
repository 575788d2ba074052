"""Configuration: where `conf/` is, the resolvers that it uses, and composing it without a command line.

Nothing here imports torch, verl or ray, so `python -m unify_posttrain.train --cfg job` answers at once on any machine.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.backend.seams import completed
from unify_posttrain.hydra_mode import composed_once
from unify_posttrain.output import guarded_output
from unify_posttrain.paths import check_written, expand_environment, expand_home, tidy
from unify_posttrain.phase_files import expand_phases, file_chain
from unify_posttrain.released_keys import translated
from unify_posttrain.shapes import bucket_mib, logits_chunk
from unify_posttrain.sweeps import sweep_job
from unify_posttrain.typos import ConfigurationError, check_additions, did_you_mean, dotted_keys, explain_error, with_hint

PACKAGE = Path(__file__).resolve().parent
GROUPS = ("backend", "algorithm", "model", "task", "hardware")
FULL_ERROR = "HYDRA_FULL_ERROR"
INTERRUPTED = 130  # exit code after Ctrl-C, as a shell says it


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


def verl_agg(mode: str) -> str:
    """verl's name for an aggregation; it has no constant divisor, and uses the name for metrics only."""
    return "seq-mean-token-sum-norm" if mode == "sum-norm" else mode


def verl_dual(bound: float | None) -> float:
    """verl's key of the dual clip must be a number; its default stands where there is none."""
    return 3.0 if bound is None else bound


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
    return _share_of(len(os.sched_getaffinity(0)) // 2, ranks)


def passive_threads_per_rank(ranks: int) -> int:
    """The same where threads sleep while they wait (OMP_WAIT_POLICY=passive): of two cores both, since nobody is kept waiting."""
    cores = len(os.sched_getaffinity(0))
    return _share_of(max(min(2, cores), cores // 2), ranks)


def _share_of(threads: int, ranks: int) -> int:
    return max(1, threads // int(ranks))


def register_resolvers() -> None:
    """Make the interpolations of `conf/` known to OmegaConf; harmless when repeated."""
    resolvers = {
        "verl_conf": _verl_conf,
        "conf_dir": lambda: str(conf_dir()),
        "seed_key": _seed_key,
        "verl_agg": verl_agg,
        "verl_dual": verl_dual,
        "part": _part,
        "episode_steps": _episode_steps,
        "ray_cpus": _ray_cpus,
        "lanes": passive_threads_per_rank,
        "passive_threads": lambda ranks: str(passive_threads_per_rank(ranks)),  # an environment variable must be text
        "add": lambda *numbers: sum(numbers),
        "tokens_per_gpu": lambda prompt, response: 2 * (prompt + response),
        "bucket_mib": bucket_mib,
        "logits_chunk": logits_chunk,
        "beyond": lambda limit, margin, never: never if limit is None else limit + margin,
        "sweep_job": sweep_job,
    }
    expand_environment()
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def check_choices(arguments: Sequence[str]) -> None:
    """Refuse an unknown choice of a group before Hydra does, listing ours only (verl's own files share the folder names).

    Raises:
        ValueError: e.g. for `algorithm=hpd`; lists the known ones and the nearest.
    """
    for argument in arguments:
        group = argument.partition("=")[0]
        for choice in _choices(argument) if group in GROUPS else ():
            known = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
            if choice not in known:
                hint = did_you_mean(get_close_matches(choice, known, n=1))
                raise ValueError(f"{group}={choice} is unknown; choose one of {', '.join(known)}{hint}")


def _choices(argument: str) -> list[str]:
    """What `group=…` selects: one choice, or those of a sweep (`group=a,b`). What Hydra cannot read is left to it."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except OverrideParseException:
        return []
    if override.is_sweep_override():
        return list(override.sweep_string_iterator()) if override.is_choice_sweep() else []
    value = override.value()
    return [str(each) for each in value] if isinstance(value, list) else ["null" if value is None else str(value)]


def compose_config(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """Compose a configuration as the command line would, e.g. `compose_config(["algorithm=luffy", "model=qwen3_8b"])`.

    Raises:
        ValueError: an unknown choice of a group.
        ConfigurationError: (a ValueError too) any other override that does not fit; names the nearest keys.
    """
    overrides = expand_home(overrides)
    if config_name == "train":
        overrides = translated(overrides)
    check_choices(overrides)
    try:
        config = _compose(overrides, config_name)
    except CompactHydraException as error:
        raise ConfigurationError(explain_error(error, overrides, lambda: known_keys(config_name, _chosen(overrides)))) from error
    expand(config, overrides, config_name)
    return config


def _compose(overrides: Sequence[str], config_name: str) -> DictConfig:
    register_resolvers()
    running = GlobalHydra.instance().hydra  # of the command that this may be a part of
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base=None, config_dir=str(conf_dir())):
            return compose(config_name=config_name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = running


def expand(config: DictConfig, overrides: Sequence[str], config_name: str = "train") -> None:
    """Compose the phases of a run, in place (see `unify_posttrain.phase_files`), and tidy its paths.

    Raises:
        ValueError: names the phase and what is wrong with it.
    """
    completed(config)
    expand_phases(config, overrides, lambda given: compose_config(given, config_name), conf_dir() / "algorithm")
    tidy(config)


@cache
def known_keys(config_name: str, algorithms: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Every dotted key of a command's configuration, and which other algorithms it belongs to; none: it exists.

    Of the training configuration also our groups, and what the files of conf/algorithm add to the rest.

    Args:
        config_name: the command's primary file.
        algorithms: the choices of the command line; none: the default one.
    """
    if config_name != "train":
        return dict.fromkeys(dotted_keys(OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{config_name}.yaml"))), ())
    composed = dict.fromkeys((*dotted_keys(OmegaConf.to_container(_compose((), config_name))), *GROUPS), ())
    declared = set(dotted_keys(OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"))))
    owners: dict[str, list[str]] = {}
    for path in sorted(path for path in (conf_dir() / "algorithm").glob("*.yaml") if not path.stem.endswith("_released")):
        for file in file_chain(path.parent, path.stem):
            for key in dotted_keys(OmegaConf.to_container(OmegaConf.load(file))):
                if key.startswith(("fusion.", "trainer.")) and key not in declared and path.stem not in owners.setdefault(key, []):
                    owners[key].append(path.stem)
    common = composed.keys() - owners.keys() | {key for key in owners if key.startswith("trainer.") and key in _verl_keys()}
    chosen = {name.removesuffix("_released") for name in algorithms or _chosen(())}
    others = {key: () if chosen & set(names) else tuple(names) for key, names in owners.items() if key not in common}
    return {**dict.fromkeys(sorted(common), ()), **others}


def _chosen(overrides: Sequence[str]) -> tuple[str, ...]:
    """The algorithm that a command line names, or those of its sweep; the default one if it names none."""
    named = [choice for each in overrides if each.startswith("algorithm=") for choice in _choices(each)]
    default = (each["algorithm"] for each in OmegaConf.load(conf_dir() / "train.yaml").defaults if "algorithm" in each)
    return tuple(named) or (next(default),)


@cache
def _verl_keys() -> frozenset[str]:
    """Dotted keys of verl's trainer node, which an algorithm's file may set and every run has."""
    node = OmegaConf.load(Path(_verl_conf()) / "ppo_trainer.yaml")
    return frozenset(f"trainer.{key}" for key in node.trainer)


def run_command(main: Callable[[], None], config_name: str = "train") -> None:
    """Run the `hydra.main` of a command: a mistake on its command line ends it with one line, `error: …`, and code 1.

    What it logs and ends with is cleaned (`unify_posttrain.output`). With HYDRA_FULL_ERROR=1 in the environment Hydra's own
    traceback is left as it is.

    Args:
        main: the decorated function.
        config_name: its primary file, for the keys to suggest.
    """
    sys.argv[1:] = expand_home(sys.argv[1:])
    # The interpreter's last collection would walk through all of torch, verl and ray, 1.4 s to free nothing.
    atexit.register(gc.freeze)
    with guarded_output():
        _run_command(main, config_name)


def _run_command(main: Callable[[], None], config_name: str) -> None:
    given = os.environ.get(FULL_ERROR)
    try:
        if config_name == "train":
            sys.argv[1:] = translated(sys.argv[1:])
        arguments = sys.argv[1:]
        _check_arguments(arguments, config_name)
    except ValueError as error:
        sys.exit(f"error: {error}")
    os.environ[FULL_ERROR] = "1"  # Hydra would otherwise print its error, several lines of it, and exit
    try:
        with composed_once(arguments):
            main()
    except CompactHydraException as error:
        if given == "1":
            raise
        sys.exit(f"error: {explain_error(error, arguments, lambda: known_keys(config_name, _chosen(arguments)))}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    except SystemExit as stop:
        sys.exit(with_hint(stop.code) if isinstance(stop.code, str) else stop.code)
    finally:
        if given is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = given


def _check_arguments(arguments: Sequence[str], config_name: str) -> None:
    """Mistakes that Hydra would not see, or would explain by verl's files; only the training configuration has any."""
    if config_name == "train":
        check_choices(arguments)
        check_written(arguments)
        files = [file for name in _chosen(arguments) for file in file_chain(conf_dir() / "algorithm", name)]
        declared = [OmegaConf.to_container(OmegaConf.load(path)) for path in (conf_dir() / "train.yaml", *files)]
        check_additions(arguments, list(dict.fromkeys(key for node in declared for key in dotted_keys(node))))
