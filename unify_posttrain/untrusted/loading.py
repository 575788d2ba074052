"""Whether the weights of a folder are those of its architecture, as transformers itself sees it.

transformers fills a parameter that the files lack with random numbers and says so in a warning; training and evaluation would then
go on with a model that nobody made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

KINDS = {"missing_keys": "missing", "unexpected_keys": "unknown to the model", "mismatched_keys": "of another shape"}


def check_fits(
    folder: Path, model_class: Any, setting: str, trust_remote_code: bool = False, body_only: bool = False, **options: Any
) -> None:
    """Let transformers load a folder onto the meta device: names and shapes, no memory.

    Args:
        folder: of a model whose files are whole (`weights.check_files`).
        model_class: a class with `from_pretrained`.
        setting: where the user named it, as `key=value`.
        trust_remote_code: run code of the folder.
        body_only: the model gets a head of its own; those of the folder and of the class do not count.
        options: of `from_pretrained`, such as `config`.

    Raises:
        ValueError: a weight is missing (tied ones excepted), unknown, or of another shape; names the first ones.
    """
    from safetensors import SafetensorError

    try:
        model, loading = model_class.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the whole name
            trust_remote_code=trust_remote_code,
            **options,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{setting}: transformers cannot load the weights of {folder}: {_line(error)}") from error
    if body_only:
        body = f"{model.base_model_prefix}."
        loading = {
            **loading,
            "unexpected_keys": [],
            "missing_keys": [name for name in loading["missing_keys"] if name.startswith(body)],
        }
    flaws = flaws_of(loading)
    if flaws:
        raise ValueError(
            f"{setting}: the weights of {folder} do not fit the model that its config.json describes: {flaws}; the folder is "
            "incomplete or damaged, or of another architecture"
        )


def flaws_of(loading: Mapping[str, Any]) -> str:
    """What transformers reports of a load, in words; empty if all fits."""
    found = []
    for kind, names in loading.items():
        if names:
            shown = ", ".join(sorted(str(name[0]) if isinstance(name, tuple) else str(name) for name in names)[:5])
            found.append(f"{kind} ({KINDS.get(kind, kind)}, {len(names)}): {shown}")
    return "; ".join(found)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
