"""A prompt that several rows of a micro-batch share, computed once for all of them (`fusion.share_prompts`).

Rollouts of a group begin with the same prompt. Tokens attend to what is before them only, so the prompt's keys and values do not
depend on what follows: they are computed in a pass of their own, and the responses attend to them in a second one.
Log-probabilities and gradients are those of whole rows up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from verl import DataProto
from verl.utils.model import extract_multi_modal_inputs

from unify_posttrain.rollout.pictures import GRIDS, LENGTHS, PIXELS, picture_key

PICTURES = "multi_modal_inputs"


@dataclass(frozen=True)
class SharedPrompts:
    """Which rows of a micro-batch share a prompt; U prompts, B rows.

    Attributes:
        firsts: (U,) a row that has the prompt.
        index: (B,) the prompt of each row.
        width: T, columns of responses.
        pictures: the model's arguments for the pictures of the U prompts; empty for text.
    """

    firsts: Tensor
    index: Tensor
    width: int
    pictures: Mapping[str, Tensor]

    @classmethod
    def of(cls, micro_batch: Mapping[str, Any], image_token: int | None) -> SharedPrompts | None:
        """None where no row shares its prompt with another, or a response shows pictures: those come without their places.

        Args:
            micro_batch: verl's streams.
            image_token: what stands for pictures in the rows of a model that sees.
        """
        responses = micro_batch["responses"]
        shown = micro_batch.get(PICTURES)
        if shown is not None and any(map(bool, shown)) and (image_token is None or bool((responses == image_token).any())):
            return None
        if not _are_pictures(shown):
            return None
        numbers = _numbers(micro_batch["input_ids"], micro_batch["attention_mask"], responses.shape[-1], shown)
        firsts = sorted({number: row for row, number in reversed(list(enumerate(numbers)))}.values())
        if len(firsts) == len(numbers):
            return None
        pictures = {} if shown is None else extract_multi_modal_inputs([shown[row] for row in firsts])
        device = responses.device
        return cls(torch.tensor(firsts, device=device), torch.tensor(numbers, device=device), responses.shape[-1], pictures)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Let `model` answer a call with the micro-batch in two passes. Its logits are those of the last prompt column and of the
        responses, (B, 1 + T, V), which is as far back as verl reads."""
        whole = model.forward

        def forward(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **given: Any) -> CausalLMOutputWithPast:
            options = {name: value for name, value in given.items() if name not in micro_batch_arguments}
            prompt, cache = input_ids.shape[-1] - self.width, DynamicCache(config=model.config)
            shared = whole(
                input_ids=input_ids[self.firsts, :prompt],
                attention_mask=attention_mask[self.firsts, :prompt],
                position_ids=position_ids[..., self.firsts, :prompt],
                past_key_values=cache,
                **{**options, **self.pictures, "use_cache": True},
            )
            if cache.get_seq_length() != prompt:  # a model that keeps keys and values its own way, or none
                return whole(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **given)
            for layer in cache.layers:
                layer.keys, layer.values = (each.index_select(0, self.index) for each in (layer.keys, layer.values))
            own = whole(
                input_ids=input_ids[:, prompt:],
                attention_mask=attention_mask,
                position_ids=position_ids[..., prompt:],
                past_key_values=cache,
                **{**options, "use_cache": True},
            )
            logits = torch.cat([shared.logits[:, -1:].index_select(0, self.index), own.logits], dim=1)
            return CausalLMOutputWithPast(logits=logits)  # of a class that FSDP finds tensors in: it waits for their gradients

        micro_batch_arguments = {"pixel_values", "image_grid_thw", "images_seqlens", *self.pictures}
        model.forward = forward
        try:
            yield
        finally:
            del model.forward


def can_share(model: nn.Module) -> bool:
    """Whether a model's prompts can be computed apart from its responses: keys and values of all layers are kept and returned,
    nothing is drawn at random, no memory is saved by computing twice. Only where there is one rank: whether rows share a prompt is
    a matter of each micro-batch, and ranks must run a sharded model equally often."""
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig) or isinstance(model, FSDP) or (dist.is_initialized() and dist.get_world_size() > 1):
        return False
    takes = inspect.signature(model.forward).parameters
    keeps = "past_key_values" in takes or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    reads_all = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()) or _rate(config) > 0
    return keeps and reads_all and not draws and not getattr(model, "is_gradient_checkpointing", False)


def together(mini_batch: DataProto, shared: bool = True, trimmed: bool = False) -> DataProto:
    """The rows of a mini-batch in another order: what saves work stands in one micro-batch.

    Args:
        mini_batch: B rows with T response columns.
        shared: rows that share a prompt stand beside each other, so that it is computed once. Prompts stand in the order they are
            met in.
        trimmed: prompts, or rows, stand in the order of their longest response, so that the rows of a micro-batch have few columns
            of padding.
    """
    columns, shown = mini_batch.batch, mini_batch.non_tensor_batch.get(PICTURES)
    width = columns["responses"].shape[-1]
    numbers = list(range(len(mini_batch)))
    if shared and _are_pictures(shown):
        numbers = _numbers(columns["input_ids"], columns["attention_mask"], width, shown)
    longest = [0] * len(numbers)
    if trimmed:
        for number, length in zip(numbers, columns["attention_mask"][:, -width:].sum(dim=-1).tolist(), strict=True):
            longest[number] = max(longest[number], length)
    order = sorted(range(len(numbers)), key=lambda row: (longest[numbers[row]], numbers[row]))
    return mini_batch if order == list(range(len(order))) else mini_batch.select_idxs(torch.tensor(order))


def _are_pictures(shown: Sequence[Mapping[str, Tensor]] | None) -> bool:
    """Whether rows show nothing but pictures, as Qwen's processors make them: of videos and others nothing is known here."""
    return all(
        not each or {PIXELS, GRIDS} <= set(each) <= {PIXELS, GRIDS, LENGTHS} for each in (shown if shown is not None else ())
    )


def _numbers(input_ids: Tensor, attention_mask: Tensor, width: int, shown: Sequence[Mapping[str, Tensor]] | None) -> list[int]:
    """(B,) of each row the number of its prompt, counted as they are met."""
    prompts = torch.cat([input_ids[:, :-width], attention_mask[:, :-width]], dim=1).cpu().numpy()
    known: dict[tuple[bytes, bytes], int] = {}
    keys = [
        (prompt.tobytes(), b"" if shown is None or not shown[row] else picture_key(shown[row]))
        for row, prompt in enumerate(prompts)
    ]
    return [known.setdefault(key, len(known)) for key in keys]


def _rate(config: PretrainedConfig) -> float:
    return max(getattr(config, "attention_dropout", 0.0) or 0.0, getattr(config.get_text_config(), "attention_dropout", 0.0) or 0.0)
