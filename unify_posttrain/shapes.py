"""The numbers of a model that its memory follows from: of its folder, or the public ones of `shape` in conf/model/NAME.yaml.

Imports neither torch nor transformers: resolvers of `conf/` call this while a configuration is composed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unify_posttrain.untrusted.documents import read_object

MIB = 1 << 20
# config.json's names for ours; models that see hold their language model's numbers in `text_config`.
NAMES = {"layers": "num_hidden_layers", "hidden": "hidden_size", "vocabulary": "vocab_size"}
SIGHT = {
    "layers": "depth",
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "merge": "spatial_merge_size",
    "patch": "patch_size",
}


@dataclass(frozen=True)
class Sight:
    """Numbers of the part of a model that sees.

    Attributes:
        layers, hidden, intermediate: of its transformer over patches.
        merge: patches of an image token's side.
        patch: pixels of a patch's side.
    """

    layers: int
    hidden: int
    intermediate: int
    merge: int
    patch: int

    @property
    def largest(self) -> int:
        """Weights of its largest tensor: of a patch's numbers (3 colours in 2 pictures, as of a video), or of a token's patches."""
        return self.hidden * max(3 * 2 * self.patch**2, self.merge**4 * self.hidden)


@dataclass(frozen=True)
class Shape:
    """Numbers of a model's config.json and the count of its weights.

    Attributes:
        parameters: all weights, a tied embedding once; None: the weights are not on this disk.
        layers, hidden, vocabulary: of the language model.
        intermediate: width of its feed-forward part.
        tied: whether the output head is the embedding.
        vision: weights of the part that sees, which are among `parameters`.
        sight: further numbers of that part; None: the model sees nothing, or its numbers have other names.
    """

    parameters: int | None
    layers: int
    hidden: int
    vocabulary: int
    intermediate: int
    tied: bool = False
    vision: int = 0
    sight: Sight | None = None

    @property
    def embedding(self) -> int:
        """Weights of the embedding, and of the output head if it is another matrix: of each."""
        return self.vocabulary * self.hidden

    @property
    def largest(self) -> int:
        """Weights of the largest tensor: the embedding, or with few words a matrix of a layer (GPT-NeoX has q, k and v in one)."""
        language = self.hidden * max(self.vocabulary, self.intermediate, 3 * self.hidden)
        return language if self.sight is None else max(language, self.sight.largest)


def model_shape(path: str, declared: Mapping[str, Any] | None = None) -> Shape | None:
    """Of a folder; of a hub id whose files are in the local cache; else what is `declared` for a model of that name.

    Args:
        path: `actor_rollout_ref.model.path`, or a critic's.
        declared: `shape` of the configuration: the numbers of the model `declared["name"]`. A folder on the disk wins over it, and
            of a path that ends in another name it says nothing.

    Returns:
        None: nothing is known of this model.
    """
    found = _shape_on_disk(path)
    if declared is None or Path(str(path)).name != Path(str(declared["name"])).name:
        return found
    public = _declared_shape(declared)
    if found is None or replace(found, parameters=public.parameters, vision=public.vision, sight=public.sight) == public:
        return public if found is None or found.parameters is None else replace(found, vision=public.vision)
    return found


def _declared_shape(declared: Mapping[str, Any]) -> Shape:
    vision = declared.get("vision")
    return Shape(
        parameters=declared["parameters"],
        layers=declared["layers"],
        hidden=declared["hidden"],
        vocabulary=declared["vocabulary"],
        intermediate=declared["intermediate"],
        tied=declared["tied"],
        vision=vision["parameters"] if vision else 0,
        sight=Sight(*(vision[name] for name in SIGHT)) if vision else None,
    )


def _shape_on_disk(path: str) -> Shape | None:
    """None: there is no config.json, or it uses other names."""
    folder = Path(str(path)).expanduser()
    if not folder.is_dir():
        cached = _cached_description(str(path))
        if cached is None:
            return None
        folder = cached.parent
    if not (folder / "config.json").is_file():
        return None
    description = read_object(folder / "config.json")
    text = {**description, **(description.get("text_config") or {})}
    numbers = {ours: text.get(theirs) for ours, theirs in NAMES.items()}
    if None in numbers.values():
        return None
    weights, stored = _weight_bytes(folder), 4 if "32" in str(description.get("dtype") or description.get("torch_dtype")) else 2
    return Shape(
        parameters=None if weights is None else weights // stored,
        intermediate=text.get("intermediate_size") or 4 * numbers["hidden"],
        tied=bool(text.get("tie_word_embeddings", False)),
        sight=_sight(description.get("vision_config")),
        **numbers,
    )


def _sight(described: Mapping[str, Any] | None) -> Sight | None:
    numbers = [described.get(theirs) for theirs in SIGHT.values()] if described else [None]
    return None if None in numbers else Sight(*numbers)


def _cached_description(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # neither a folder nor a name that the hub could know
        return None
    return Path(cached) if isinstance(cached, str) else None


def _weight_bytes(folder: Path) -> int | None:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        size = (read_object(index).get("metadata") or {}).get("total_size")
        return int(size) if isinstance(size, int | float) else None
    if not single.is_file():
        return None
    with open(single, "rb") as file:  # 8 bytes, a header of so many, the weights
        return single.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


# Resolvers


def bucket_mib(shape: Mapping[str, Any] | None, path: str, least: int, width: int = 4) -> int:
    """MiB of the buffer through which weights reach the engine. verl sends every tensor whole, in the dtype that is trained.

    >>> qwen = dict(name="Qwen2.5-7B", parameters=7_615_616_512, layers=28, hidden=3584, vocabulary=152_064, intermediate=18_944)
    >>> bucket_mib({**qwen, "tied": False}, "Qwen/Qwen2.5-7B", least=2048)  # 152,064 x 3584 x 4 bytes are 2079 MiB
    2112

    Args:
        shape, path: see `model_shape`.
        least: what it is at least, and what a model of unknown shape gets.
        width: bytes of a weight.
    """
    known = model_shape(path, shape)
    return least if known is None else max(least, -(-known.largest * width // (64 * MIB)) * 64)


def logits_chunk(shape: Mapping[str, Any] | None, path: str, mib: int, unknown: int) -> int:
    """Tokens whose logits take at most so many MiB, as `fusion.logits_chunk`: three float32 numbers per token and word
    (`objective.log_probs`), in steps of 128 tokens.

    >>> qwen = dict(name="Qwen2.5-7B", parameters=7_615_616_512, layers=28, hidden=3584, vocabulary=152_064, intermediate=18_944)
    >>> logits_chunk({**qwen, "tied": False}, "Qwen/Qwen2.5-7B", mib=2048, unknown=1024)  # 2 GiB / (3 x 152,064 x 4) = 1176
    1152

    Args:
        shape, path: see `model_shape`.
        mib: the limit.
        unknown: what a model of unknown shape gets.
    """
    known = model_shape(path, shape)
    return unknown if known is None else max(128, mib * MIB // (3 * known.vocabulary * 4) // 128 * 128)


def has_processor(folder: Path) -> bool:
    """Whether a folder of a model says how pictures become numbers: preprocessor_config.json of transformers 4, or
    processor_config.json of transformers 5."""
    return any(folder.glob("*processor_config.json"))


def spell_out(folder: Path, model: Any) -> None:
    """Have the config.json of a folder that was just written say what either version of transformers looks for. Of a model with
    parts transformers 4 writes its class and whether its head is the embedding beside the part that reads text, if at all;
    transformers 5 looks for them above the parts."""
    above = {"architectures": [type(model).__name__], "tie_word_embeddings": bool(model.config.tie_word_embeddings)}
    described = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **above}
    (folder / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
