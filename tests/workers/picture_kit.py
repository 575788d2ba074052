"""An actor on a smallest Qwen2.5-VL with verl's forward pass for pictures, and batches of rows with and without them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from verl import DataProto
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.utils import hf_processor

from tests.tiny_vision import picture, prompt
from tests.workers.actor_kit import make_actor
from tests.workers.engine_kit import make_engine_actor
from tests.workers.legacy_outcomes import settled
from unify_posttrain.backend import seams
from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.pictures import picture_references, reference
from unify_posttrain.rollout.pictures import PictureReader, image_frame
from unify_posttrain.trainer.packing import INPUTS_COLUMN, Packing

PROMPT, RESPONSE = 48, 12
PATCHED = [
    (module, f"{family}{part}")
    for module, family in ((modeling_qwen2_5_vl, "Qwen2_5_VL"), (modeling_qwen2_vl, "Qwen2VL"))
    for part in ("Model", "ForConditionalGeneration")
]


@contextmanager
def verls_forward() -> Iterator[None]:
    """verl changes the classes of transformers for its worker's process; here they get their own forward passes back."""
    before = [getattr(module, name).forward for module, name in PATCHED]
    try:
        yield
    finally:
        for (module, name), forward in zip(PATCHED, before, strict=True):
            getattr(module, name).forward = forward


def make_seeing_model(folder: Path, frozen: bool = False):
    """In the state in which verl's worker has it. Weights are far from zero, so that what a row shows decides its gradient, and
    the same with every version of transformers."""
    model = settled(AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").float())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(float(name.endswith("weight")))
    apply_monkey_patch(model=model, use_remove_padding=False)
    if frozen:
        model.model.visual.requires_grad_(False)
    return model


@cache
def saved_folder(folder: Path) -> str:
    """Where that model is, for engines, which read theirs."""
    saved = tempfile.mkdtemp()
    make_seeing_model(folder).save_pretrained(saved)
    return saved


def make_seeing_actor(folder: Path, chunk: str = "null", frozen: bool = False, recording: bool = True, **settings: Any) -> Any:
    """On the other backend than the engine, where this verl has it."""
    flags = ("algorithm=hpt", f"fusion.logits_chunk={chunk}")
    if "legacy" in seams.BACKENDS:
        return make_actor(*flags, module=make_seeing_model(folder, frozen), recording=recording, settings=settings)
    return make_engine_actor(*flags, settings=settings, record=recording, model=saved_folder(folder))


def rows(folder: Path, shown: Sequence[int], told: Sequence[int] | None = None, seed: int = 0) -> DataProto:
    """A demonstration per entry: how many pictures its prompt shows, all of different sizes and contents.

    Args:
        folder: of the model.
        shown: pictures of each prompt.
        told: images that each response shows between its answers; None: it has one answer.
        seed: of what those images show.
    """
    processor = hf_processor(str(folder), use_fast=True)
    reader, found = PictureReader(processor), []
    for row, number in enumerate(shown):
        pictures = [picture(56 + 28 * (each % 2), 56 + 28 * (row % 3), 10 * row + each) for each in range(number)]
        messages = prompt(f"Row {row}?", *pictures)
        response = tuple(range(20 + row, 20 + row + 3 + row % (RESPONSE - 3)))
        references, mask = picture_references(messages), ()
        if told is not None:
            answer, mask = response, (1,) * len(response)
            for each in range(told[row]):
                block = image_frame(processor.tokenizer).around(6)
                response, mask = (*response, *block, *answer), (*mask, *[0] * len(block), *[1] * len(answer))
                references = (*references, reference(picture(84, 56, 100 + 10 * row + each + seed)))
        found.append(Demonstration(row, 0, reader.read(messages).ids, response, mask=mask, pictures=references))
    width = RESPONSE if told is None else 48
    tensors, inputs = Packing(PROMPT, width, processor.tokenizer.pad_token_id, reader).rows(found)
    generator = torch.Generator().manual_seed(0)
    mask = tensors["response_mask"]
    tensors["old_log_probs"] = -4 + torch.randn(mask.shape, generator=generator)
    tensors["advantages"] = torch.randn(len(found), 1, generator=generator) * mask
    for name in ("rl_weight", "off_weight", "sft_weight"):
        tensors[name] = torch.rand(len(found), generator=generator) + 0.5
    demo = torch.arange(len(found)) % 2 == 0
    tensors["prefix_mask"] = mask.bool() & demo.unsqueeze(-1)
    uids = np.array([f"group-{row}" for row in range(len(found))], dtype=object)
    meta = {"temperature": 1.0, "mini_batches": 1, "pad_token_id": processor.tokenizer.pad_token_id}
    return DataProto.from_dict(tensors=tensors, non_tensors={"uid": uids, INPUTS_COLUMN: inputs}, meta_info=meta)
