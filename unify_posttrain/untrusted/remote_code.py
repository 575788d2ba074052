"""Code that a model folder brings: refused unless its author is trusted, before anything loads the folder.

transformers imports Python files of a folder, or of another repository, that a JSON file of it names under `auto_map`: of
tokenizers, processors, configurations and models alike. Every load of this package passes the configured trust, which is false by
default; this check is there to say so before Ray starts, and in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.untrusted.documents import DocumentError, parse

# Keys under which transformers looks for classes that are not its own; the values name `file.Class` or `repository--file.Class`.
CODE_KEYS = ("auto_map", "custom_pipelines")
# Files that transformers reads; one of them that is no JSON is an error here, because it would be one there, without the name.
READ = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "adapter_config.json",
    }
)


def custom_code(folder: Path) -> tuple[Path, str, str] | None:
    """(file, key, what it names) of the first JSON file of a folder that asks for code, or None.

    Raises:
        ValueError: a file that transformers reads is no JSON, or is nested too deeply; names it.
    """
    for file in sorted(folder.glob("*.json")):
        try:
            content = parse(file.read_bytes())
        except DocumentError as error:
            if file.name in READ:
                raise ValueError(f"{file} cannot be read: {error}; get the file again") from error
            continue  # nobody reads it
        for key, value in _entries(content):
            # A vocabulary may hold the word; what it maps to is a number.
            if key in CODE_KEYS and value and isinstance(value, str | list | Mapping):
                return file, key, str(value)[:100]
    return None


def refuse_code(folder: Path, setting: str, trust_key: str | None) -> None:
    """Stop at a folder that asks for code.

    Args:
        folder: of a model, tokenizer or processor, on this machine.
        setting: where the user named it, as `key=value`.
        trust_key: the setting that would run the code; None: this command never does.

    Raises:
        ValueError: names file, key and the setting.
    """
    found = custom_code(folder)
    if found is None:
        return
    file, key, named = found
    trust = f"or, if you trust its author, set {trust_key}=true" if trust_key else "nothing runs such code here"
    raise ValueError(
        f"{setting}: {file} asks for Python code that comes with the model ({key}: {named!r}), which is not run; take a folder "
        f"without it, remove {key} where transformers knows the model by itself, {trust}"
    )


def local_documents(path: str, download: bool) -> Path | None:
    """The folder with the JSON files of a model: itself, or the hub's cache, which is filled with these files alone if asked.

    Returns:
        None: it is not on this machine and may not, or cannot, be fetched.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json"], local_files_only=not download))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError):
        return None  # whoever loads the model says what is wrong


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of the objects of a document, at any depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
