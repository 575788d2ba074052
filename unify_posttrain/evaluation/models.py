"""Models under evaluation: a folder or a name on the hub, or the checkpoints of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unify_posttrain.untrusted.remote_code import refuse_code
from unify_posttrain.untrusted.weights import check_files

UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Model:
    """A model under evaluation.

    Attributes:
        label: its name in tables and file names.
        path: folder or hub name.
        step: training step of a run's checkpoint, part of the seeds; None for a model that is no checkpoint.
    """

    label: str
    path: str
    step: int | None = None


def named_models(node: Any) -> list[Model]:
    """Models of the key `model`: one path, a list of paths, or a mapping label -> path; labels are the last parts of the paths.

    Raises:
        ValueError: nothing there, or something else.
    """
    if isinstance(node, str):
        node = [node]
    if isinstance(node, Mapping):
        pairs = [(str(label), path) for label, path in node.items()]
    elif isinstance(node, Sequence):
        pairs = [(Path(str(path)).name, path) for path in node]
    else:
        raise ValueError(f"model={node!r}: give a folder, a name on the hub, a list of them or {{label: path}}")
    if not pairs or any(not isinstance(path, str) or not path for _, path in pairs):
        raise ValueError(f"model={node!r}: give a folder, a name on the hub, a list of them or {{label: path}}")
    labels: list[str] = []
    for label, _ in pairs:
        labels.append(_fresh(safe_name(label), labels))
    return [Model(label, path) for label, (_, path) in zip(labels, pairs, strict=True)]


def safe_name(text: str) -> str:
    """A name that is safe as a file name: letters, digits, dot, dash and underscore, and never a step out of its folder."""
    return UNSAFE.sub("_", text).strip(".") or "_"


def _fresh(label: str, taken: Sequence[str]) -> str:
    number = 2
    candidate = label
    while candidate in taken:
        candidate, number = f"{label}-{number}", number + 1
    return candidate


def local_folder(path: str) -> Path:
    """The model's files on this machine; a hub name is looked up in the cache, or downloaded.

    Raises:
        ValueError: neither a folder nor a model that can be downloaded.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"model={path} is no folder and cannot be had from the hub ({type(error).__name__}); check it") from error


def check_folder(folder: Path, setting: str, allow_pickle: bool) -> None:
    """What can be said of a model before anything of it is loaded: no code of its own, and weights whose files are whole.

    Raises:
        ValueError: names the file.
    """
    refuse_code(folder, setting, trust_key=None)
    check_files(folder, setting, allow_pickle)
