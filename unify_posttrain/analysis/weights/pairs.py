"""Two model folders whose matrices belong together: what is compared, and what is refused before anything is computed.

Weights are read one tensor at a time from safetensors files; nothing else of a folder is loaded, and no code of it is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unify_posttrain.untrusted.documents import read_object
from unify_posttrain.untrusted.remote_code import refuse_code
from unify_posttrain.untrusted.weights import check_files, check_finite, header, weight_files

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")  # the number of a layer in the names of transformers
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$")
ADAPTER = re.compile(r"\.lora_(?:A|B|embedding_[AB])\b|\.lora_magnitude_vector\b")
FLOATS = ("F64", "F32", "BF16", "F16")  # types of safetensors that hold a weight as it is
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Selection:
    """Which matrices are compared.

    Attributes:
        modules: regular expression that is searched for in a tensor's name.
        layers: numbers of layers; None: all, and what belongs to none.
    """

    modules: str
    layers: frozenset[int] | None

    def holds(self, name: str) -> bool:
        """Whether a tensor's name is selected."""
        if not re.search(self.modules, name):
            return False
        return self.layers is None or layer_of(name) in self.layers


def layer_of(name: str) -> int | None:
    """The layer in a tensor's name; None for embeddings, heads and final norms.

    >>> layer_of("model.layers.12.mlp.up_proj.weight")
    12
    """
    found = LAYER.search(name)
    return int(found[1]) if found else None


def module_of(name: str) -> str:
    """The name of a matrix within its layer, for tables and heat maps.

    >>> module_of("model.layers.12.mlp.up_proj.weight")
    'mlp.up_proj'
    """
    found = LAYER.search(name)
    return (name[found.end() :] if found else name).removesuffix(".weight")


class Weights:
    """The tensors of a model folder.

    Args:
        folder: of a model.
        setting: where the user named it, as `key=value`.

    Raises:
        ValueError: a guard (see :func:`open_pair`).
    """

    def __init__(self, folder: Path, setting: str) -> None:
        self.folder, self.setting = folder, setting
        _check_kind(folder, setting)
        refuse_code(folder, setting, trust_key=None)
        self.config = read_object(folder / "config.json")
        if self.config.get("quantization_config"):
            raise ValueError(
                f"{setting}: the weights are quantised (quantization_config in config.json); give a folder with weights in "
                "float32, bfloat16 or float16"
            )
        self.shapes = dict(check_files(folder, setting, allow_pickle=False))
        self.places = self._places()
        adapters = [name for name in self.shapes if ADAPTER.search(name)]
        if adapters:
            raise ValueError(f"{setting} holds weights of a LoRA adapter ({_listed(adapters)}); {MERGE}")
        self._drop_tied_head()

    def _places(self) -> dict[str, Path]:
        """Tensor -> file: by the index if there is one, as transformers reads it."""
        found = weight_files(self.folder)
        if found.index:
            self.shapes = {name: self.shapes[name] for name in found.index}
            return dict(found.index)
        places: dict[str, Path] = {}
        for path in found.files:
            for name in header(path):
                if name in places:
                    raise ValueError(
                        f"{self.setting}: {name} stands in {places[name].name} and in {path.name}, and no index says which counts; "
                        "remove one of the files"
                    )
                places[name] = path
        return places

    def _drop_tied_head(self) -> None:
        """A head that is the embedding counts once, under the embedding's name, whether the files hold it twice or not."""
        self.tied = [name for name in self.shapes if HEAD.search(name)] if self.config.get("tie_word_embeddings") else []
        for name in self.tied:
            del self.shapes[name], self.places[name]

    def kinds(self, names: Sequence[str]) -> dict[str, str]:
        """Tensor -> type as safetensors calls it, such as BF16."""
        from safetensors import safe_open

        found = {}
        for path in sorted({self.places[name] for name in names}):
            with safe_open(path, framework="pt") as file:
                found.update({name: file.get_slice(name).get_dtype() for name in names if self.places[name] == path})
        return found

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in its own precision."""
        from safetensors import safe_open

        with safe_open(self.places[name], framework="pt") as file:
            return file.get_tensor(name)


MERGE = "merge it into its model first, as python -m unify_posttrain.export does for checkpoints of a run"


def _check_kind(folder: Path, setting: str) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"{setting} is no folder; give a model's folder on this machine, for example one that python -m unify_posttrain.export "
            "wrote"
        )
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{setting} holds a LoRA adapter; {MERGE}")
    found = weight_files(folder)
    if found.pickled:
        raise ValueError(f"{setting}: the weights are pickled ({found.files[0].name}); give a safetensors version of the model")
    missing = "config.json" if not (folder / "config.json").is_file() else "" if found.files else "*.safetensors"
    if missing:
        raise ValueError(f"{setting} holds no {missing}; give the folder of a whole model")


@dataclass(frozen=True)
class Pair:
    """A base and a tuned model of the same names and shapes.

    Attributes:
        base, tuned: the two folders.
        names: of the selected matrices, in the order in which they are worked on: by layer, then by name.
        skipped: why selected tensors are not looked at -> how many.
    """

    base: Weights
    tuned: Weights
    names: tuple[str, ...]
    skipped: Mapping[str, int]

    def shape(self, name: str) -> tuple[int, int]:
        """(m, n) of a selected matrix."""
        rows, columns = self.base.shapes[name]
        return rows, columns

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """(base, tuned) of one matrix."""
        return self.base.read(name), self.tuned.read(name)

    @property
    def rest(self) -> list[str]:
        """Tensors of the tuned model that are not selected."""
        chosen = set(self.names)
        return [name for name in self.tuned.shapes if name not in chosen]


def open_pair(base: Path, tuned: Path, selection: Selection, finite: bool = True) -> Pair:
    """Check two folders against each other.

    Args:
        base, tuned: folders of models.
        selection: what is compared.
        finite: read all numbers once, in search of NaN and infinities.

    Raises:
        ValueError: no folder, an adapter, code that comes with the model, pickled, damaged, quantised or non-finite weights, names
            or shapes that differ, nothing selected.
    """
    ours, theirs = Weights(base, f"base={base}"), Weights(tuned, f"tuned={tuned}")
    _check_alike(ours, theirs)
    chosen = sorted(filter(selection.holds, ours.shapes), key=lambda name: (_order(name), name))
    names = [name for name in chosen if len(ours.shapes[name]) == 2]
    if not names:
        raise ValueError(_nothing(selection, ours, chosen))
    for model in (ours, theirs):
        odd = {name: kind for name, kind in model.kinds(names).items() if kind not in FLOATS}
        if odd:
            name, kind = next(iter(odd.items()))
            raise ValueError(
                f"{model.setting}: {len(odd)} selected matrices are quantised (first {name}, {kind}); give a folder with weights "
                "in float32, bfloat16 or float16"
            )
        if finite:
            check_finite(model.folder, model.setting)
    return Pair(ours, theirs, tuple(names), _skipped(ours, chosen))


def _order(name: str) -> int:
    layer = layer_of(name)
    return -1 if layer is None else layer


def _skipped(model: Weights, chosen: Sequence[str]) -> dict[str, int]:
    dimensions = [len(model.shapes[name]) for name in chosen]
    counts = {
        "experts in one tensor of three dimensions": sum(each == 3 for each in dimensions),
        "vectors and others without rows and columns": sum(each not in (2, 3) for each in dimensions),
        "heads that are tied to the embedding": len(model.tied),
    }
    return {why: number for why, number in counts.items() if number}


def _nothing(selection: Selection, model: Weights, chosen: Sequence[str]) -> str:
    layers = "" if selection.layers is None else f" and layers={','.join(map(str, sorted(selection.layers)))}"
    if chosen:
        why = f"only tensors that are no matrices ({_listed(chosen)})"
    else:
        why = f"none of the {len(model.shapes)} tensors, such as {_listed(list(model.shapes), 3)}"
    return f"modules={selection.modules!r}{layers} select {why}; give another modules=REGEX or layers="


def _check_alike(base: Weights, tuned: Weights) -> None:
    only_base = sorted(base.shapes.keys() - tuned.shapes.keys())
    only_tuned = sorted(tuned.shapes.keys() - base.shapes.keys())
    other = sorted(name for name in base.shapes.keys() & tuned.shapes.keys() if base.shapes[name] != tuned.shapes[name])
    parts = []
    for names, what in ((only_base, "only in the base"), (only_tuned, "only in the tuned model")):
        if names:
            parts.append(f"{len(names)} {what} ({_listed(names)})")
    if other:
        shapes = [f"{name} {_size(base.shapes[name])} and {_size(tuned.shapes[name])}" for name in other[:SHOWN]]
        parts.append(f"{len(other)} of other shapes ({_listed(shapes, len(other))})")
    if parts:
        raise ValueError(
            f"{tuned.setting}: its tensors are not those of {base.setting}: {'; '.join(parts)}; give two models of one architecture"
        )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _listed(names: Sequence[Any], most: int = SHOWN) -> str:
    return ", ".join(map(str, names[:most])) + (", …" if len(names) > most else "")


def parse_layers(value: Any) -> frozenset[int] | None:
    """Numbers of the key `layers`: null, a number, `0-9,12`, or a list of these.

    Raises:
        ValueError: something else.
    """
    if value is None:
        return None
    parts = [part.strip() for each in (value if isinstance(value, list | tuple) else [value]) for part in str(each).split(",")]
    found: set[int] = set()
    for part in parts:
        ends = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise ValueError(f"layers={value}: {part!r} is no number or range; give for example layers=0-9,12")
        found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return frozenset(found)
