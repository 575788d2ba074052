"""Which files of a data folder make up a split: found by their names, as `datasets` finds them, or named by the folder's README.

A README of a data set may say which file belongs to which split. What it says is taken as names of files in the folder and as
nothing else: an absolute path, a step upwards or an address would let its author choose what is read. Its other entries (types of
columns, options of readers) have no effect.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from unify_posttrain.untrusted.folders import leads_out, refuse_links

SOURCE = "prepare.task.source"
DATA = (".parquet", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".arrow", ".feather")  # suffixes of rows
DESCRIPTIONS = ("manifest.json", "config.json", "state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
CARDS = ("README.md", ".huggingface.yaml")  # where `datasets` looks for splits; the later one wins


def split_files(folder: Path, config_name: str | None, formats: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Split -> its files, sorted by name within each pattern.

    Args:
        folder: of the data.
        config_name: which of the README's sets of files; None: its default, or the only one.
        formats: suffixes of files that can be read; others are passed over unless the README names them.

    Raises:
        ValueError: a README that cannot be read or names files elsewhere, an unknown set, a link out of the folder, a format.
    """
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns

    named = _patterns(folder, config_name)
    for name in named_files([named] if named else []):
        _check_name(folder, name)
    data_files, data_dir = (named or {}).get("data_files"), str((named or {}).get("data_dir") or ".")
    if not isinstance(data_files, str | list | Mapping | None):
        raise ValueError(f"{SOURCE}: the README of {folder} has data_files={data_files!r}; mend or remove it")
    base = escape(str(folder.resolve() / data_dir))  # brackets in the name of a folder are no pattern
    try:
        patterns = sanitize_patterns(data_files) if data_files else get_data_patterns(base)
        resolved = DataFilesDict.from_patterns(patterns, base_path=base)
    except (EmptyDatasetError, FileNotFoundError) as error:
        raise ValueError(f"{SOURCE}={folder}: {' '.join(str(error).split())[:300]}; check the folder and its README") from error
    found = {}
    for split, paths in resolved.items():
        files = [Path(path) for path in paths]
        unknown = [file for file in files if file.suffix not in formats]
        if unknown and data_files:
            raise ValueError(
                f"{SOURCE}={folder}: its README names {unknown[0].name} for split {split}; the format must be "
                f"{' or '.join(formats)}: unpack or convert the file"
            )
        files = [file for file in files if file.suffix in formats]
        refuse_links(folder, files, f"{SOURCE}={folder}")
        if files:
            found[str(split)] = tuple(files)
    if found and not data_files:
        _refuse_lost(folder / data_dir, found, formats)
    return found


def _refuse_lost(folder: Path, found: Mapping[str, Sequence[Path]], formats: Sequence[str]) -> None:
    """ValueError if the folder holds files of data that no split takes: names decide, and a part of the rows would go unread."""
    taken = {file.resolve() for files in found.values() for file in files}
    lost = [path for path in _data_files(folder) if path.resolve() not in taken]
    if not lost:
        return
    names = ", ".join(str(path.relative_to(folder)) for path in lost[:3]) + (", …" if len(lost) > 3 else "")
    read = "; ".join(f"{split}: {', '.join(file.name for file in files[:3])}" for split, files in found.items())
    other = [path for path in lost if path.suffix not in formats]
    why = f"its format must be {' or '.join(formats)}" if other else "its name says no split"
    raise ValueError(
        f"{SOURCE}={folder}: {names} would not be read ({why}; read are {read}); convert or rename it (train-….jsonl), take "
        "it out of the folder, or give one file"
    )


def _data_files(folder: Path) -> Iterator[Path]:
    """Files that look like data, without hidden ones and those that describe data."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            if name.endswith(DATA) and not name.startswith(".") and not name.endswith(DESCRIPTIONS):
                yield Path(place) / name


def named_files(sets: Any) -> list[str]:
    """Every name, pattern and folder of files in `configs` of a README, however it is written."""
    found: list[str] = []
    values: list[Any] = [each.get(key) for each in sets if isinstance(each, Mapping) for key in ("data_files", "data_dir")]
    while values:
        value = values.pop()
        if isinstance(value, Mapping):
            values.extend(value.values())  # {split: train, path: …}; a split's name never leads out
        elif isinstance(value, list):
            values.extend(value)
        elif value is not None:
            found.append(str(value))
    return found


def _patterns(folder: Path, config_name: str | None) -> Mapping[str, Any] | None:
    """The set of files that the README names, with `data_files` or `data_dir`; None: it names none."""
    sets = _configurations(folder)
    if not sets:
        return None
    names = [str(each.get("config_name", "default")) for each in sets]
    default = next((name for name, each in zip(names, sets, strict=True) if each.get("default") or name == "default"), None)
    wanted = config_name or default or (names[0] if len(names) == 1 else None)
    if wanted not in names:
        raise ValueError(f"prepare.task.config_name={config_name}: the README of {folder} has {', '.join(names)}; choose one")
    chosen = sets[names.index(wanted)]
    return chosen if chosen.get("data_files") or chosen.get("data_dir") else None


def _configurations(folder: Path) -> list[Mapping[str, Any]]:
    import yaml
    from huggingface_hub.repocard import metadata_load

    found: Any = None
    for name in CARDS:
        path = folder / name
        if not path.is_file():
            continue
        refuse_links(folder, [path], f"{SOURCE}={folder}")
        try:
            content = metadata_load(path) if name.endswith(".md") else yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{SOURCE}: {path} cannot be read ({' '.join(str(error).split())[:200]}); mend or remove it"
            ) from error
        found = content.get("configs", found) if isinstance(content, Mapping) else found
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise ValueError(f"{SOURCE}: the README of {folder} has configs={str(found)[:80]!r}; it must be a list of mappings")
    return found


def _check_name(folder: Path, name: str) -> None:
    if leads_out(name):
        raise ValueError(
            f"{SOURCE}={folder}: its README names {name!r}, which is outside of the folder; only files of the folder are read: "
            "mend the README, or give the file itself"
        )
