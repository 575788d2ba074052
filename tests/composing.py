"""Hydra's composition for tests, which compose thousands of configurations out of the same few selections of files.

What takes its time is reading, ordering and merging some thirty files. That depends on the groups that are chosen (`algorithm=…`)
and not on the values that are set besides, so it is done once per choice; Hydra then applies the values to a copy. Files that have
changed since are read anew.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf, _utils, base, grammar_parser

from unify_posttrain.config import conf_dir

Files = tuple[tuple[str, int | None], ...]


def _stamp(path: str) -> int | None:
    file = Path(path)
    return file.stat().st_mtime_ns if file.exists() else None


class Composed:
    """What has been composed: ordered lists of files by the choices that led to them, and merged configurations by those lists."""

    def __init__(self) -> None:
        self._lists: dict[tuple, tuple[Files, DefaultsList]] = {}
        self._merged: dict[tuple, tuple[Files, bytes]] = {}
        self._order, self._merge = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list

    def order(self, repo: Any, config_name: str | None, overrides_list: Sequence[Override], **flags: bool) -> DefaultsList:
        """As Hydra's `create_defaults_list`."""
        chosen = [each for each in overrides_list if repo.group_exists(each.key_or_group) or each.is_sweep_override()]
        key = (config_name, tuple(each.input_line for each in chosen), tuple(sorted(flags.items())), _folders(repo))
        if not self._holds(self._lists, key):
            found = self._order(repo=repo, config_name=config_name, overrides_list=overrides_list, **flags)
            self._lists[key] = (_files(repo, found), found)
            return found
        known = self._lists[key][1]
        values = Overrides(repo=repo, overrides_list=list(overrides_list)).config_overrides
        return DefaultsList(
            defaults=known.defaults, defaults_tree=known.defaults_tree, config_overrides=values, overrides=known.overrides
        )

    def merge(self, loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> DictConfig:
        """As Hydra's `_compose_config_from_defaults_list`."""
        key = (tuple(map(repr, defaults)), _folders(repo))
        if not self._holds(self._merged, key):
            merged = self._merge(loader, defaults=defaults, repo=repo)
            self._merged[key] = (_stamps(repo, (each.config_path for each in defaults)), pickle.dumps(merged))
            return merged
        return pickle.loads(self._merged[key][1])

    @staticmethod
    def _holds(kept: dict, key: tuple) -> bool:
        return key in kept and all(_stamp(path) == stamp for path, stamp in kept[key][0])


def _sources(repo: Any) -> list[ConfigSource]:
    return repo.get_sources()


def _folders(repo: Any) -> tuple[str, ...]:
    return tuple(f"{each.scheme()}{each.path}" for each in _sources(repo))


def _stamps(repo: Any, names: Any) -> Files:
    """Where the files of a list are or would be, in every folder that is searched, and when they were changed."""
    folders = [each.path for each in _sources(repo) if each.scheme() == "file"]
    paths = [f"{folder}/{name}.yaml" for name in names if name for folder in folders]
    return tuple((path, _stamp(path)) for path in paths)


def _files(repo: Any, found: DefaultsList) -> Files:
    return _stamps(repo, (each.config_path for each in found.defaults))


class Parsed:
    """Files as they were read, until they change."""

    def __init__(self, source: type[ConfigSource]) -> None:
        self._parse = source.load_config
        self._kept: dict[tuple, bytes] = {}

    def load(self, source: ConfigSource, config_path: str) -> ConfigResult:
        """As `load_config` of Hydra's source of files."""
        path = f"{source.path}/{source._normalize_file_name(config_path)}"
        key = (source.provider, path, _stamp(path))
        if key not in self._kept:
            self._kept[key] = pickle.dumps(self._parse(source, config_path))
        return pickle.loads(self._kept[key])


class Loaded:
    """Files of conf/ as OmegaConf loads them: those who ask for defaults, sources and writers of files read the same ones again and
    again. Others are read as ever."""

    def __init__(self) -> None:
        self._load = OmegaConf.load
        self._kept: dict[tuple, bytes] = {}

    def load(self, file: Any) -> Any:
        """As `OmegaConf.load`."""
        if not isinstance(file, str | Path) or not Path(file).is_relative_to(conf_dir()):
            return self._load(file)
        key = (str(file), _stamp(str(file)))
        if key not in self._kept:
            self._kept[key] = pickle.dumps(self._load(file))
        return pickle.loads(self._kept[key])


def remember() -> None:
    """Let Hydra remember what it reads and composes, in this process from now on."""
    Plugins.instance()  # registers the source of files, which is not the class that an import would give
    files = SourcesRegistry.instance().resolve("file")
    parsed, kept = Parsed(files), Composed()
    files.load_config = lambda source, config_path: parsed.load(source, config_path)
    for module in (base, _utils):  # interpolations are parsed at every look at them; nobody changes what comes of it
        module.parse = cache(grammar_parser.parse)
    config_loader_impl.create_defaults_list = kept.order
    ConfigLoaderImpl._compose_config_from_defaults_list = lambda loader, defaults, repo: kept.merge(loader, defaults, repo)
    OmegaConf.load = Loaded().load
