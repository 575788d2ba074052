"""Whether the weights of a folder are those of its architecture, as transformers itself sees it.

transformers fills a parameter that the files lack with random numbers and says so in a warning; training and evaluation would then
go on with a model that nobody made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KINDS = {"missing_keys": "missing", "unexpected_keys": "unknown to the model", "mismatched_keys": "of another shape"}


def check_fits(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    model_class: Any,
    setting: str,
    trust_remote_code: bool = False,
    body_only: bool = False,
    config: Any = None,
) -> None:
    """Let transformers load weights of these names and shapes, without their numbers: nothing is read, and no memory taken.

    Args:
        folder: of a model.
        shapes: tensor -> shape, as the headers of its files say (`weights.check_files`).
        model_class: an automatic class of transformers, which finds the model by its configuration.
        setting: where the user named the folder, as `key=value`.
        trust_remote_code: run code of the folder.
        body_only: the model gets a head of its own; those of the folder and of the class do not count.
        config: of the model; None: the folder's.

    Raises:
        ValueError: a weight is missing (tied ones excepted), unknown, or of another shape; names the first ones.
    """
    import torch
    from transformers import AutoConfig

    try:
        if config is None:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        # The attention of a run may need packages of GPUs, and has no weights.
        config._attn_implementation = "eager"
        with torch.device("meta"):
            blank = model_class.from_config(config, trust_remote_code=trust_remote_code)
        model, loading = type(blank).from_pretrained(
            None,
            config=config,
            state_dict={name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()},
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the whole name
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{setting}: transformers cannot load the model of {folder}: {_line(error)}") from error
    if body_only:
        body = f"{model.base_model_prefix}."
        missing = [name for name in loading["missing_keys"] if name.startswith(body)]
        loading = {**loading, "unexpected_keys": [], "missing_keys": missing}
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
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
