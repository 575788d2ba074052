"""Find a reward function as verl does, without verl: `pkg://module`, `file://path` or a path, and a name in it.

A process that loads with these functions cannot reach the graders of verl that evaluate or run what a model wrote, whoever imports
them: see FORBIDDEN.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE, FILE = "pkg://", "file://"
VERL_GRADERS = "verl.utils.reward_score"
DISPATCHER = "default_compute_score"  # verl's, which chooses a grader by data source
# Modules of verl that hand what a model wrote to an evaluator, and what they do with it.
FORBIDDEN = {
    f"{VERL_GRADERS}.prime_math": "evaluates model text (CVE-2026-6878)",
    f"{VERL_GRADERS}.prime_code": "runs programs that a model wrote",
    f"{VERL_GRADERS}.geo3k": "evaluates model text (through mathruler)",
    f"{VERL_GRADERS}.math_verify": "evaluates model text (math-verify's parser of plain expressions)",
}
# The data sources that verl's default_compute_score sends there.
FORBIDDEN_SOURCES = {
    **{
        f"numina_{name}": f"{VERL_GRADERS}.prime_math"
        for name in ("aops_forum", "synthetic_math", "amc_aime", "synthetic_amc", "cn_k12", "olympiads")
    },
    **dict.fromkeys(("codecontests", "apps", "codeforces", "taco"), f"{VERL_GRADERS}.prime_code"),
    "hiyouga/geometry3k": f"{VERL_GRADERS}.geo3k",
}
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")  # what verl's reward managers call with, by name
REMEDY = "set reward.custom_reward_function.path=pkg://unify_posttrain.rewards.math, name=compute_score"


class ForbiddenGraderError(ImportError):
    """A grader of verl that evaluates or runs model text was asked for."""


class LoadError(ValueError):
    """A reward function cannot be loaded; names key, value and remedy."""


class _Guard(importlib.abc.MetaPathFinder):
    """Stands before all other finders. `asked` is what was refused, also where a function swallows the error."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname in FORBIDDEN:
            self.asked.append(fullname)
            raise ForbiddenGraderError(refusal(fullname))
        return None


_guard = _Guard()


def refusal(module: str) -> str:
    """Why a module is not loaded, and what to use instead."""
    return f"verl's {module.rpartition('.')[2]} {FORBIDDEN[module]}; {REMEDY}"


def install_guard() -> None:
    """Refuse FORBIDDEN in this process from now on."""
    if _guard not in sys.meta_path:
        sys.meta_path.insert(0, _guard)
    for name in FORBIDDEN:  # imported before: nobody finds it any more
        package, _, leaf = name.rpartition(".")
        if sys.modules.pop(name, None) is not None and hasattr(sys.modules.get(package), leaf):
            delattr(sys.modules[package], leaf)


def forbidden_attempt() -> str | None:
    """The refusal of an import since the last call, whether or not the error reached anyone; None if there was none."""
    asked, _guard.asked = _guard.asked, []
    return refusal(asked[0]) if asked else None


def forbidden_path(path: str) -> str | None:
    """The forbidden module that a path names, by package or by file; None for any other."""
    if path.startswith(PACKAGE):
        name = path.removeprefix(PACKAGE).replace("/", ".")
        return next((each for each in FORBIDDEN if name == each or name.startswith(f"{each}.")), None)
    parts = Path(path.removeprefix(FILE)).expanduser().resolve().with_suffix("").parts
    for module in FORBIDDEN:
        folder, name = module.split(".")[-2:]
        inside = any(pair == (folder, name) for pair in pairwise(parts))
        if inside or (name.startswith("prime_") and name in parts):
            return module
    return None


def check_dispatch(node: Mapping[str, Any], sources: Iterable[str]) -> None:
    """Raises:
    ValueError: verl's dispatcher would send a data source to a forbidden grader.
    """
    if node.get("name") != DISPATCHER and not str(node.get("path")).replace("/", ".").endswith(VERL_GRADERS):
        return
    remote = (node.get("reward_kwargs") or {}).get("sandbox_fusion_url")  # a service that the user runs for it
    for source in sorted(FORBIDDEN_SOURCES.keys() & set(sources)):
        module = FORBIDDEN_SOURCES[source]
        if not (remote and module.endswith("prime_code")):
            raise ValueError(f"data_source={source!r}: verl's {DISPATCHER} grades it with {refusal(module)}")


def load_function(node: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of a node {path, name, reward_kwargs}, called with the four arguments of verl's managers and its own.

    Raises:
        LoadError: no such file, module or function, a module that cannot be imported, or a signature that does not take the
            arguments; names key, value and remedy.
    """
    key = "reward.custom_reward_function"
    path, name, own = str(node["path"]), str(node["name"]), dict(node.get("reward_kwargs") or {})
    module_name = forbidden_path(path)
    if module_name is not None:
        raise LoadError(f"{key}.path={path}: {refusal(module_name)}")
    install_guard()
    module = _module(path, key)
    function = getattr(module, name, None)
    if function is None:
        defined = [
            each for each, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise LoadError(f"{key}.name={name}: {path} has no such function; it defines {', '.join(defined) or 'none'}")
    if not callable(function):
        raise LoadError(f"{key}.name={name} of {path} is {type(function).__name__}, not a function")
    _check_signature(function, own, f"{key}.name={name} of {path}")
    return functools.partial(function, **own)


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _module(path: str, key: str) -> ModuleType:
    try:
        if path.startswith(PACKAGE):
            return importlib.import_module(path.removeprefix(PACKAGE).replace("/", "."))
        file = Path(path.removeprefix(FILE)).expanduser()
        if not file.is_file():
            raise LoadError(f"{key}.path={path} does not exist; check the path")
        name = f"unify_reward_{abs(hash(str(file.resolve())))}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise LoadError(f"{key}.path={path} is no Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look a class's module up there
        spec.loader.exec_module(module)
        return module
    except ForbiddenGraderError as error:
        raise LoadError(f"{key}.path={path}: {error}") from error
    except (SyntaxError, ImportError) as error:
        raise LoadError(f"{key}.path={path} cannot be imported: {type(error).__name__}: {error}") from error
    except (LoadError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a module may do anything when it is imported, SystemExit included
        raise LoadError(f"{key}.path={path} fails when it is imported: {type(error).__name__}: {error}") from error


def _check_signature(function: Callable[..., Any], own: Mapping[str, Any], where: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin: the first call says it
        return
    try:
        signature.bind(**{**dict.fromkeys(ARGUMENTS), **own})
    except TypeError as error:
        raise LoadError(
            f"{where} takes {signature}, but is called with {', '.join(f'{each}=…' for each in [*ARGUMENTS, *own])} ({error}); "
            "name its arguments so, or take **kwargs"
        ) from None
