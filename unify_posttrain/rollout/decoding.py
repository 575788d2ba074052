"""Decoding a batch of prompts with transformers: used by the trainer's engine and by evaluation, so that both generate alike.

transformers runs the model; the loop is ours. A prompt that several rows share is prefilled once, memory for keys and values is
taken once, rows that have ended leave the batch, and nothing is done in Python per row and token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache

from unify_posttrain.backend.seams import rope_inputs
from unify_posttrain.rollout.attention import fast_attention
from unify_posttrain.rollout.cache import cache_for_rows, empty_cache, keep_rows
from unify_posttrain.rollout.masks import GrowingMask, made_for
from unify_posttrain.rollout.pictures import GRIDS, PIXELS, Inputs, picture_keys
from unify_posttrain.rollout.sampling import SamplingParams, SeededSampler


@dataclass(frozen=True)
class Decoded:
    """One response.

    Attributes:
        token_ids: sampled tokens; an end token is the last one, if there is any.
        log_probs: (len(token_ids),) of the distribution that each token was drawn from.
    """

    token_ids: list[int]
    log_probs: Tensor


@dataclass(frozen=True)
class Finished:
    """Rows that have ended, N of them, on CPU.

    Attributes:
        rows: (N,) which rows of the batch these are.
        lengths: (N,) tokens of each.
        token_ids: (N, T) up to the longest; what follows a row's length has no meaning.
        log_probs: (N, T) float32.
    """

    rows: Tensor
    lengths: Tensor
    token_ids: Tensor
    log_probs: Tensor


def decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    eos_ids: Sequence[int],
    pad_id: int,
    pictures: Sequence[Inputs] | None = None,
) -> list[Decoded]:
    """One response per prompt, in the order of the prompts; see :func:`decode`."""
    return in_order(decode(model, prompts, params, eos_ids, pad_id, portion=len(prompts), pictures=pictures), len(prompts))


def in_order(parts: Iterable[Finished], rows: int) -> list[Decoded]:
    """The responses of all parts, by row."""
    found: dict[int, Decoded] = {}
    for part in parts:
        for row, ids, log_probs, length in zip(
            part.rows.tolist(), part.token_ids.tolist(), part.log_probs, part.lengths.tolist(), strict=True
        ):
            found[row] = Decoded(ids[:length], log_probs[:length])
    return [found[row] for row in range(rows)]


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    eos_ids: Sequence[int],
    pad_id: int,
    portion: int,
    pictures: Sequence[Inputs] | None = None,
) -> Iterator[Finished]:
    """Generate one response per prompt, all at once; B prompts, padded on the left.

    Args:
        model: on its device, in eval mode.
        prompts: (B,) token ids.
        params: (B,) one per prompt.
        eos_ids: tokens that end a response.
        pad_id: filler of shorter prompts, masked.
        portion: rows are handed over when so many have ended, those of a portion in their order.
        pictures: (B,) what a model that sees needs of each prompt's pictures, whose pads the prompt holds; None: there are none.
    """
    device, steps = model.device, max(each.max_tokens for each in params)
    sampler = SeededSampler(params, device)
    limits, ends = torch.tensor([each.max_tokens for each in params], device=device), torch.tensor(list(eos_ids), device=device)
    token_ids = torch.full((len(prompts), steps), pad_id, device=device)
    log_probs = torch.zeros(len(prompts), steps, device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
    handed_over = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    rows, waiting = torch.arange(len(prompts), device=device), 0
    # The attention is this decoding's own from one token to the next, not while the rows of a portion are looked at.
    with fast_attention(model):
        batch = _Batch.prefilled(model, prompts, steps - 1, pad_id, pictures)
    for step in range(steps):
        drawn, log_prob = sampler.draw(batch.logits, rows, step)
        token_ids[rows, step], log_probs[rows, step] = drawn, log_prob
        alive = ~torch.isin(drawn, ends) & (limits[rows] > step + 1)
        left = int(alive.sum())
        if left < len(rows):
            lengths[rows[~alive]] = step + 1
            waiting += len(rows) - left
            order = _closing_up(alive, left)
            rows, drawn = rows[order], drawn[order]
            if waiting >= portion or not left:
                given = ((lengths > 0) & ~handed_over).nonzero().squeeze(-1)
                handed_over[given], waiting = True, 0
                width = int(lengths[given].max())
                yield Finished(
                    *(each.cpu() for each in (given, lengths[given], token_ids[given, :width], log_probs[given, :width]))
                )
            if not left:
                return
            batch.keep(order)
        with fast_attention(model):
            batch.step(drawn)


class _Batch:
    """The model's side of the rows that are being decoded: n of them, after W columns of prompt.

    Attributes:
        logits: (n, V) for the next token.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, attended: Tensor, positions: Tensor | None, logits: Tensor) -> None:
        self.model, self.cache, self.logits = model, cache, logits
        # Rows that begin in different columns need masks; without one, attention reads everything.
        self.mask = None if bool(attended.all()) else GrowingMask(attended, made_for(model, cache))
        self.positions = positions

    @classmethod
    def prefilled(
        cls,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        room: int,
        pad_id: int,
        pictures: Sequence[Inputs] | None = None,
    ) -> _Batch:
        """Every prompt once, whoever shares it; then a row for each that asks for it, with room for more tokens."""
        pictures = pictures or [{}] * len(prompts)
        known: dict[tuple[tuple[int, ...], bytes], int] = {}
        keys = [(tuple(prompt), shown) for prompt, shown in zip(prompts, picture_keys(pictures), strict=True)]
        index = torch.tensor([known.setdefault(key, len(known)) for key in keys])
        width = max(len(prompt) for prompt, _ in known)
        input_ids = torch.full((len(known), width), pad_id)
        attended = torch.zeros_like(input_ids)
        for row, (prompt, _) in enumerate(known):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attended[row, width - len(prompt) :] = 1
        shown = _together([pictures[keys.index(key)] for key in known], model.device)
        index, input_ids, attended = (each.to(model.device) for each in (index, input_ids, attended))
        known_arguments = inspect.signature(model.forward).parameters
        positions, options = None, {}
        if "position_ids" in known_arguments:
            positions = _positions(model, input_ids, attended, shown.get(GRIDS))
            options["position_ids"] = positions
        if "logits_to_keep" in known_arguments:
            options["logits_to_keep"] = 1
        cache = empty_cache(model.config)
        output = model(input_ids=input_ids, attention_mask=attended, past_key_values=cache, use_cache=True, **options, **shown)
        last = None if positions is None else positions[..., index, -1:]
        return cls(model, cache_for_rows(cache, index, room), attended[index], last, output.logits[index, -1])

    def keep(self, order: Tensor) -> None:
        """Row i is row order[i] from now on."""
        keep_rows(self.cache, order)
        if self.mask is not None:
            self.mask.keep(order)
        self.positions = None if self.positions is None else self.positions[..., order, :]

    def step(self, token_ids: Tensor) -> None:
        """Append a token (n,) to every row."""
        options = {}
        if self.positions is not None:
            self.positions = self.positions + 1
            options["position_ids"] = self.positions
        output = self.model(
            input_ids=token_ids.unsqueeze(1),
            attention_mask=None if self.mask is None else self.mask.with_another(),
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )
        self.logits = output.logits[:, -1]


def _together(pictures: Sequence[Inputs], device: torch.device) -> Inputs:
    """The pictures of several prompts, in their order, as a model's arguments."""
    names = [name for name in (PIXELS, GRIDS) if any(name in each for each in pictures)]
    return {name: torch.cat([each[name] for each in pictures if name in each]).to(device) for name in names}


def _positions(model: PreTrainedModel, input_ids: Tensor, attended: Tensor, grids: Tensor | None) -> Tensor:
    """(U, W) positions; (3, U, W) of time, height and width for a model that sees. What follows a prompt counts on from its last
    one, in all three alike."""
    rope_index = getattr(getattr(model, "model", None), "get_rope_index", None)
    if rope_index is None:
        return (attended.cumsum(dim=-1) - 1).clamp(min=0)
    return rope_index(input_ids, image_grid_thw=grids, attention_mask=attended, **rope_inputs(input_ids, model.config))[0]


def _closing_up(alive: Tensor, left: int) -> Tensor:
    """(left,) which of the rows (n,) each place has when those that are not `alive` have gone: the last ones take their places, so
    that as few as possible move."""
    order = torch.arange(left, device=alive.device)
    order[~alive[:left]] = alive[left:].nonzero().squeeze(-1) + left
    return order


def end_tokens(folder: str, tokenizer_eos: int | None, trust_remote_code: bool = False) -> list[int]:
    """The tokenizer's end token first, then the others that the model's generation settings stop at."""
    try:
        configured = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        configured = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(token for token in (tokenizer_eos, *several) if token is not None))
