"""Files of weights: which ones a model folder means, whether they are whole, and whether they hold numbers.

The header of a safetensors file says how long the file must be and which tensors it holds; reading it costs nothing. What is not
found here ends a run later, as an error of a library that names no file, or trains and evaluates weights that are not the model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unify_posttrain.untrusted.documents import read_object
from unify_posttrain.untrusted.folders import member, say_links

if TYPE_CHECKING:
    from torch import Tensor

INDEX, PICKLED_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
AGAIN = "the download or copy was cut short, or the file was changed; get it again"


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a model folder.

    Attributes:
        files: sorted; the ones that are there and the ones that an index names.
        index: tensor -> file, as the index of a sharded model says; empty without one.
        pickled: the folder has no safetensors, but files of torch.save.
    """

    files: tuple[Path, ...]
    index: Mapping[str, Path]
    pickled: bool


def weight_files(folder: Path) -> WeightFiles:
    """Which files of a folder hold its weights. Both readers of a folder are served: transformers goes by the index, vLLM by name.

    Raises:
        ValueError: an index that cannot be read, or that names a file outside of the folder.
    """
    for pattern, index_name, pickled in (("*.safetensors", INDEX, False), ("*.bin", PICKLED_INDEX, True)):
        index = _index(folder, index_name)
        there = {path for path in folder.glob(pattern) if path.is_file()}
        if there or index:
            return WeightFiles(tuple(sorted(there | set(index.values()))), index, pickled)
    return WeightFiles((), {}, False)


def _index(folder: Path, name: str) -> dict[str, Path]:
    path = folder / name
    if not path.is_file():
        return {}
    content = read_object(path)
    named = content.get("weight_map")
    if not isinstance(content.get("metadata"), Mapping):  # without which transformers ends in a KeyError
        raise ValueError(f"{path} has no metadata; get the file again")
    if not isinstance(named, Mapping) or not named or not all(isinstance(file, str) and file for file in named.values()):
        raise ValueError(f"{path} has no weight_map of tensors to files; get the file again")
    return {tensor: member(folder, file, str(path)) for tensor, file in named.items()}


def check_files(folder: Path, setting: str, allow_pickle: bool) -> dict[str, tuple[int, ...]]:
    """Headers of all weights: whole files, all shards there, every tensor of the index in its file.

    Args:
        folder: of a model, on this machine.
        setting: where the user named it, as `key=value`.
        allow_pickle: accept files of torch.save. They are read without running what they hold (`weights_only`), but by a reader
            that was not made for hostile files, and nothing about them can be checked beforehand.

    Returns:
        tensor -> shape; empty for pickled weights.

    Raises:
        ValueError: names the file.
    """
    found = weight_files(folder)
    missing = [path for path in found.files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{setting}: {missing[0].name}, which the index of {folder} names, is missing ({len(missing)} of {len(found.files)} "
            "files of weights are); download the model again"
        )
    say_links(folder, found.files)
    if found.pickled:
        if not allow_pickle:
            raise ValueError(
                f"{setting}: the weights of {folder} are pickled ({found.files[0].name}) and not safetensors; take a safetensors "
                "version of the model, or set allow_pickle=true if you trust its author"
            )
        return {}
    held = {path: header(path) for path in found.files}
    for tensor, path in found.index.items():
        if tensor not in held[path]:
            raise ValueError(f"{setting}: {path} does not hold {tensor}, as {INDEX} says; {AGAIN}")
    return {tensor: shape for shapes in held.values() for tensor, shape in shapes.items()}


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape of a safetensors file.

    Raises:
        ValueError: the file is cut short, longer than its header says, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())  # an open file is no mapping
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}); {AGAIN}") from error


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first tensor that holds NaN or an infinity, by name; None if all are finite. Tensors may be shards, on any device.

    Args:
        tensors: (name, tensor); what is not floating-point is skipped.
    """
    import torch

    names, extremes = [], []
    for name, tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        local = local.detach()
        if not local.is_floating_point() or not local.numel() or local.is_meta:
            continue
        if local.element_size() == 1:  # float8 has no arithmetic of its own
            local = local.to(torch.float32)
        # Minimum and maximum are NaN if one element is: a single pass that needs no memory. A GPU is waited for below, once.
        extremes.append(torch.stack(torch.aminmax(local)))
        names.append(name)
    return next((name for name, pair in zip(names, extremes, strict=True) if not bool(pair.isfinite().all())), None)


def check_finite(folder: Path, setting: str) -> None:
    """Read all safetensors of a folder, a tensor at a time.

    Raises:
        ValueError: names the first tensor that holds NaN or an infinity.
    """
    from safetensors import safe_open

    for path in weight_files(folder).files:
        if path.suffix != ".safetensors":
            continue
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            bad = first_not_finite((name, file.get_tensor(name)) for name in names)
        if bad is not None:
            raise ValueError(f"{setting}: {path} holds NaN or infinite numbers, first in {bad}; take an earlier checkpoint")


def fingerprint(folder: Path, edge: int = 1 << 20) -> str:
    """sha256 over config.json and, of every weight file, name, size, first and last megabyte: cheap, and changes with the weights.

    Raises:
        ValueError: the folder holds no model, or an index of weights that names a file elsewhere.
    """
    description = folder / "config.json"
    weights = weight_files(folder).files
    if not description.is_file() or not weights:
        raise ValueError(
            f"model {folder} holds no {'weights' if description.is_file() else 'config.json'}; give a folder that transformers "
            "loads, for example one that python -m unify_posttrain.export wrote"
        )
    digest = hashlib.sha256(description.read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(f"\0{path.relative_to(folder)}\0{size}\0".encode())
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read(edge)).digest())
            file.seek(max(0, size - edge))
            digest.update(hashlib.sha256(file.read(edge)).digest())
    return digest.hexdigest()
