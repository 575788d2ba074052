"""A base model of half a million weights, built on the spot: character tokenizer, Qwen2 or Llama architecture, own pretraining.

It stands in for a downloaded base model wherever a run has to finish on a laptop: an ordinary Hugging Face folder that
``AutoTokenizer`` and ``AutoModelForCausalLM`` open without remote code. Simplified on purpose: pretraining is plain
next-token prediction on worked solutions of one task (`unify_posttrain.tasks.pretraining`), drawn afresh in every step; the
draw does not know the test file, so problems of the easy split may occur in it.

A share of the solutions of some difficulties (``pretraining.careless``) shows a bad habit: carries are forgotten, a search
ends in a guess. Real base models can often do what they rarely do, and post-training brings it out in a few dozen steps; a
net of this size that has not learned long sums at all needs thousands. So these runs show that a method works, not that it
teaches skills from nothing.

    python -c "from pathlib import Path; import yaml; from unify_posttrain.tasks.tiny_model import build_base_model; \
        build_base_model(Path('outputs/models/mine'), yaml.safe_load(open('mine.yaml')))"

with the keys of ``prepare.model`` in ``conf/model/tiny_qwen2.yaml`` (sums), ``tiny_qwen2_countdown.yaml`` or
``tiny_qwen2_points.yaml``, which also say how long it takes. With a node ``vision`` (``tiny_qwen2_5_vl.yaml``) the model is a
Qwen2.5-VL and sees (`tiny_vision`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from unify_posttrain.shapes import has_processor, spell_out
from unify_posttrain.tasks import tiny_vision
from unify_posttrain.tasks.files import plain
from unify_posttrain.tasks.pretraining import example_source, pretrain, pretraining_keys
from unify_posttrain.tasks.tokenizer import CHAT_TOKENS, build_tokenizer

logger = logging.getLogger(__name__)

MARKER = "base_model.json"
MARKER_FORMAT = 3  # raise it when weights or tokenizer for equal settings change: old folders are then rebuilt

DEFAULT = "qwen2"
ARCHITECTURES: dict[str, tuple[Any, Any]] = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}

_SHAPE_KEYS = ("layers", "hidden_size", "heads", "kv_heads", "intermediate_size", "max_position_embeddings")
_IGNORED_KEYS = frozenset({"name", "folder"})  # say where and what, not which weights


def _check_keys(node: Mapping[str, Any], known: set[str], prefix: str) -> None:
    if set(node) != known:
        missing, unknown = sorted(known - set(node)), sorted(set(node) - known)
        raise ValueError(
            f"tiny model settings: missing {[prefix + k for k in missing]}, unknown {[prefix + k for k in unknown]}; "
            "give exactly the keys of conf/model/tiny_qwen2.yaml (sums), tiny_qwen2_countdown.yaml, tiny_qwen2_points.yaml or "
            "tiny_qwen2_5_vl.yaml"
        )


def _check(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A plain copy without ``name`` and ``folder``; ValueError (key, value, remedy) if a key is missing or unknown."""
    checked = {key: value for key, value in plain(settings).items() if key not in _IGNORED_KEYS}
    sees = "vision" in checked
    # `architecture` is absent in the settings of folders that were built before there was a choice.
    given = {"vision", "rope_theta"} if sees else {"architecture"} & set(checked)
    _check_keys(checked, {*_SHAPE_KEYS, "seed", "pretraining", *given}, "")
    if checked.get("architecture", DEFAULT) not in ARCHITECTURES:
        raise ValueError(f"architecture={checked['architecture']!r} is unknown; choose one of {', '.join(sorted(ARCHITECTURES))}")
    training = checked["pretraining"]
    _check_keys(training, pretraining_keys(training), "pretraining.")
    if sees:
        _check_keys(checked["vision"], set(tiny_vision.KEYS), "vision.")
    if checked["hidden_size"] % checked["heads"] or checked["heads"] % checked["kv_heads"]:
        raise ValueError(
            f"hidden_size={checked['hidden_size']}, heads={checked['heads']}, "
            f"kv_heads={checked['kv_heads']}: each must be a multiple of the next"
        )
    for key in ("steps", "batch_size"):
        if training[key] < 1:
            raise ValueError(f"pretraining.{key}={training[key]}: give an integer >= 1")
    source = example_source(training)
    if hasattr(source, "largest_picture") != sees:
        raise ValueError(
            f"pretraining.task={training['task']!r}: {'pictures need' if not sees else 'a task of text needs no'} node `vision`; "
            "take conf/model/tiny_qwen2_5_vl.yaml for task=shapes, and tiny_qwen2.yaml for sums"
        )
    question, solution = source.longest
    prompt = tiny_vision.prompt_tokens(checked, source, question) if sees else len(question) + CHAT_TOKENS
    length = prompt + len(solution) + 1  # eos
    if length > checked["max_position_embeddings"]:
        raise ValueError(
            f"max_position_embeddings={checked['max_position_embeddings']}: the longest problem of pretraining, {question!r}, "
            f"needs {length}; raise it or drop the longest problems"
        )
    return checked


def _new_model(settings: Mapping[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast | ProcessorMixin]:
    """The model with random weights, and its tokenizer; its processor if it sees."""
    if "vision" in settings:
        processor = tiny_vision.build_processor_for(settings)
        return _ending(tiny_vision.new_model(settings, processor.tokenizer), processor.tokenizer), processor
    tokenizer = build_tokenizer(settings["max_position_embeddings"])
    return _ending(_new_text_model(settings, tokenizer), tokenizer), tokenizer


def _ending(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def _new_text_model(settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config_class, model_class = ARCHITECTURES[settings.get("architecture", DEFAULT)]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=settings["hidden_size"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        num_key_value_heads=settings["kv_heads"],
        intermediate_size=settings["intermediate_size"],
        max_position_embeddings=settings["max_position_embeddings"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model: PreTrainedModel = model_class(config).float()
    return model


def _is_built(folder: Path, settings: Mapping[str, Any]) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    whole = all((folder / f).is_file() for f in files) and ("vision" not in settings or has_processor(folder))
    return whole and marker == {"format": MARKER_FORMAT, "settings": settings}


def _move_into_place(built: Path, folder: Path) -> None:
    """Give ``built`` the name ``folder``; an older build steps aside first and is then deleted."""
    if not folder.exists():
        os.replace(built, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.replace(folder, old)  # an empty directory may be replaced
    os.replace(built, folder)
    shutil.rmtree(old)


def build_base_model(folder: Path, settings: Mapping[str, Any], progress: Callable[[int, int, float], None] | None = None) -> Path:
    """Build, pretrain and save the tiny base model; nothing to do if ``folder`` holds one with equal ``settings``.

    Equal settings give equal weights on one machine with one number of threads; the caller's random state is kept.

    Args:
        folder: appears, complete, when the build has ended.
        settings: the keys of ``prepare.model`` in ``conf/model/tiny_qwen2*.yaml``; ``name`` and ``folder`` are ignored.
        progress: called after each step with (step, steps, loss in nats per trained token).

    Returns:
        ``folder``.

    Raises:
        ValueError: missing or unknown settings, or numbers that make no model.
        FileExistsError: ``folder`` holds something that this function did not build.
    """
    settings, folder = _check(settings), Path(folder)
    if _is_built(folder, settings):
        logger.info("base model in %s is up to date", folder)
        return folder
    if folder.exists() and not (folder / MARKER).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(
            f"model folder {folder} exists without {MARKER}, so it is not a tiny model to rebuild; "
            "remove it or choose another actor_rollout_ref.model.path"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            model, reader = _new_model(settings)
            logger.info("pretraining %d weights for %d steps", model.num_parameters(), settings["pretraining"]["steps"])
            pretrain(model, reader, settings["pretraining"], settings["seed"], progress)
        model.save_pretrained(temporary, safe_serialization=True)
        spell_out(temporary, model)
        reader.save_pretrained(temporary)
        marker = {"format": MARKER_FORMAT, "settings": settings}
        (temporary / MARKER).write_text(json.dumps(marker, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide a shared model from other users
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already after a success
    logger.info("base model written to %s", folder)
    return folder
