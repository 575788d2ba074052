"""Files of strangers for tests: model folders with code of their own, damaged weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVIL = '''"""Leaves a trace as soon as anything imports it."""
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

Path({marker!r}).touch()


class EvilTokenizer(PreTrainedTokenizerFast):
    pass


class EvilConfig(Qwen2Config):
    pass


class EvilModel(Qwen2ForCausalLM):
    pass
'''
# JSON file of a model folder -> what makes transformers import evil.py when it is told to trust the folder.
ASKING: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}},
    "config.json": {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}},
    "processor_config.json": {"auto_map": {"AutoProcessor": "evil.EvilProcessor"}},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "evil.EvilImageProcessor"}},
    "generation_config.json": {"custom": {"auto_map": {"AutoModel": "somebody/else--evil.EvilModel"}}},
}


def with_code(source: Path, target: Path, file: str) -> Path:
    """A copy of a model folder whose `file` asks for evil.py. Returns the trace that evil.py would leave."""
    shutil.copytree(source, target)
    path, marker = target / file, target.with_name(f"{target.name}.was-run")
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **ASKING[file]}))
    (target / "evil.py").write_text(EVIL.format(marker=str(marker)))
    return marker


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model folder with other weights: `change` gets tensor by name, and changes them in place."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def poison(name: str, value: float = float("nan")) -> Callable[[dict[str, Any]], Any]:
    """A change that makes one number of a tensor NaN, or another value."""

    def change(weights: dict[str, Any]) -> None:
        weights[name].view(-1)[-1] = value

    return change


def split(folder: Path, shards: int = 2) -> Path:
    """Cut the weights of a folder into shards with an index, as large models have them. Returns the index."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(shards):
        part = {name: weights[name] for name in sorted(weights)[number::shards]}
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index
