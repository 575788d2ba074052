"""Folders of restored models, written while the matrices are worked on.

    FOLDER/model-rest-00001.safetensors      what is not restored, as in the tuned model
    FOLDER/model-matrix-00001.safetensors    a file per restored matrix, there in whole or not at all: what a kill may not lose
    FOLDER/model.safetensors.index.json, config.json, the tokenizer's files
    FOLDER/unify_restored.json               the marker, written last

The rest is written once and linked into the other folders where the file system can do that.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unify_posttrain.analysis.weights.pairs import Pair
from unify_posttrain.runs.files import write_text
from unify_posttrain.untrusted.folders import linked_elsewhere
from unify_posttrain.untrusted.weights import INDEX

MARKER = "unify_restored.json"
REST, MATRIX = "model-rest", "model-matrix"
MIB = 1 << 20
# What transformers and vLLM read beside weights. Nothing else of the tuned folder is passed on.
COPIED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


def is_complete(folder: Path) -> bool:
    """Whether a restored folder was written to its end."""
    return (folder / MARKER).is_file()


def bytes_needed(pair: Pair, folders: int) -> int:
    """On disk, of so many restored folders: the matrices of each, the rest once."""
    each = _bytes(pair, pair.names)
    return folders * each + _bytes(pair, pair.rest)


def _bytes(pair: Pair, names: Sequence[str]) -> int:
    kinds = pair.tuned.kinds(names) if names else {}
    total = 0
    for name in names:
        size = BYTES.get(kinds[name], 8)
        for length in pair.tuned.shapes[name]:
            size *= length
        total += size
    return total


def matrix_file(pair: Pair, name: str) -> str:
    """The file of a restored matrix, in every folder."""
    return f"{MATRIX}-{pair.names.index(name) + 1:05d}.safetensors"


def write_matrix(folder: Path, file: str, name: str, matrix: Tensor) -> None:
    """One restored matrix; the file is moved into its place when it is whole."""
    _save(folder / file, {name: matrix})


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_rest(pair: Pair, folder: Path, shard_mb: int) -> dict[str, str]:
    """Everything that is not restored, in shards of about `shard_mb`; tensor -> file."""
    places: dict[str, str] = {}
    for number, names in enumerate(_shards(pair, shard_mb * MIB), start=1):
        file = f"{REST}-{number:05d}.safetensors"
        places.update(dict.fromkeys(names, file))
        if not (folder / file).is_file():
            _save(folder / file, {name: pair.tuned.read(name) for name in names})
    return places


def _shards(pair: Pair, limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name in sorted(pair.rest):
        tensor = _bytes(pair, [name])
        if names and size + tensor > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor
    if names:
        yield names


def finish(pair: Pair, folders: Mapping[str, Path], shard_mb: int, stamp: Mapping[str, Any]) -> None:
    """Complete the folders, whose restored matrices are all there.

    Args:
        pair: the models.
        folders: variant -> folder; those that have their marker are left alone.
        shard_mb: size of the files of what is not restored, in MiB.
        stamp: what the marker says, beside the variant.
    """
    open_ones = {variant: folder for variant, folder in folders.items() if not is_complete(folder)}
    if not open_ones:
        return
    places: dict[str, str] = {}
    source: Path | None = None
    for variant, folder in open_ones.items():
        if source is None:
            places, source = _write_rest(pair, folder, shard_mb), folder
        else:
            for file in sorted(set(places.values())):
                _link(source / file, folder / file)
        _write_rest_of_folder(pair, folder, places)
        write_text(folder / MARKER, json.dumps({"variant": variant, **stamp}, indent=1) + "\n")


def _write_rest_of_folder(pair: Pair, folder: Path, places: Mapping[str, str]) -> None:
    for file in COPIED:
        path = pair.tuned.folder / file
        if path.is_file():
            elsewhere = linked_elsewhere(pair.tuned.folder, path)
            if elsewhere is not None:  # it would put a file of whatever kind into a folder that may be passed on
                raise ValueError(
                    f"{pair.tuned.setting}: {path} is a link to {elsewhere}, outside of the folder; put the file there"
                )
            shutil.copyfile(path, folder / file)
    whole = {**places, **{name: matrix_file(pair, name) for name in pair.names}}
    total = _bytes(pair, list(whole))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(whole.items()))}
    write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")


def _link(source: Path, target: Path) -> None:
    if target.is_file():
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
