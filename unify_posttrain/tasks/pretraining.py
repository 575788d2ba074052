"""Pretraining of the tiny base model: next-token prediction on worked solutions of a task, drawn afresh in every step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from unify_posttrain.tasks import arithmetic, countdown
from unify_posttrain.tasks.general_points import pretraining as general_points
from unify_posttrain.tasks.shapes import rows as shapes
from unify_posttrain.tasks.vrag import pretraining as vrag

IGNORE_INDEX = -100
KINDS = "mm_token_type_ids"  # of a processor's outputs and a model's inputs

_KEYS = ("task", "steps", "batch_size", "lr", "betas", "weight_decay", "warmup_ratio", "grad_clip")


class ExampleSource(Protocol):
    """Worked examples of a task. Made from ``prepare.model.pretraining``, of which it reads the keys ``KEYS``."""

    KEYS: tuple[str, ...]

    def __init__(self, settings: Mapping[str, Any]) -> None: ...

    @property
    def longest(self) -> tuple[str, str]:
        """A question and a solution with at least as many characters as any that is drawn."""
        ...

    def draw(self, generator: random.Random, count: int) -> list[tuple[Any, ...]]:
        """``count`` pairs of a question and a solution, with a picture as a third, or of a conversation and its pictures; the
        generator decides all of it."""
        ...


# prepare.model.pretraining.task -> where the examples come from.
SOURCES: dict[str, type[ExampleSource]] = {
    "arithmetic": arithmetic.PretrainingExamples,
    "countdown": countdown.PretrainingExamples,
    "general_points": general_points.PretrainingExamples,
    "shapes": shapes.PretrainingExamples,
    "vrag": vrag.PretrainingExamples,
}


def pretraining_keys(training: Mapping[str, Any]) -> set[str]:
    """The keys that ``training`` has to have, given its ``task``; ValueError if that names none."""
    task = training.get("task")
    if task not in SOURCES:
        raise ValueError(f"pretraining.task={task!r} is unknown; choose one of {', '.join(sorted(SOURCES))}")
    return {*_KEYS, *SOURCES[task].KEYS}


def example_source(training: Mapping[str, Any]) -> ExampleSource:
    """The source that ``training`` asks for; ValueError (key, value, remedy) for settings it cannot draw from."""
    return SOURCES[training["task"]](training)


def encode_examples(tokenizer: PreTrainedTokenizerFast, examples: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of B examples (question, solution), padded on the right to T.

    A row is chat template, generation prompt, solution, eos: what post-training shows and samples.

    Returns:
        ids [B, T] int64 and labels [B, T] int64, the latter ``IGNORE_INDEX`` on prompt and padding.
    """
    chats = [[{"role": "user", "content": question}] for question, _ in examples]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=False)
    return pack(tokenizer, prompts, [solution for _, solution in examples])


def encode_pictures(processor: ProcessorMixin, examples: Sequence[tuple[str, str, Any]]) -> tuple[dict[str, Any], torch.Tensor]:
    """The same of B examples (question, solution, picture): a model's inputs, and labels."""
    chats = [[{"role": "user", "content": [{"type": "text", "text": question}, {"type": "image"}]}] for question, _, _ in examples]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    seen = processor(text=texts, images=[picture for _, _, picture in examples])
    ids, labels = pack(processor.tokenizer, seen["input_ids"], [solution for _, solution, _ in examples])
    attended = torch.ones_like(ids)  # right padding under a causal mask is attended to by nothing that is trained
    pictures = {name: torch.as_tensor(seen[name]) for name in ("pixel_values", "image_grid_thw")}
    return {"input_ids": ids, "attention_mask": attended, **token_kinds(seen, ids), **pictures}, labels


def encode_chats(processor: ProcessorMixin, examples: Sequence[tuple[list[dict[str, Any]], list[Any]]]) -> tuple[Any, torch.Tensor]:
    """The same of B conversations with the pictures that they show: every message of the assistant is trained, to its eos."""
    tokenizer = processor.tokenizer
    texts = [processor.apply_chat_template(chat, tokenize=False) for chat, _ in examples]
    pictures = [picture for _, shown in examples for picture in shown]
    seen = processor(text=texts, images=pictures or None)
    width = max(map(len, seen["input_ids"]))
    ids = torch.full((len(examples), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORE_INDEX)
    opening = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    for row, tokens in enumerate(seen["input_ids"]):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        place = 0
        while place < len(tokens):
            if tokens[place : place + len(opening)] != opening:
                place += 1
                continue
            begin = place + len(opening)
            place = tokens.index(tokenizer.eos_token_id, begin) + 1
            labels[row, begin:place] = ids[row, begin:place]
    shown = {name: torch.as_tensor(seen[name]) for name in ("pixel_values", "image_grid_thw") if name in seen}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **token_kinds(seen, ids), **shown}, labels


def token_kinds(seen: Mapping[str, Any], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens of ids [B, T] stand for pictures, if the processor says it, as that of transformers 5 does: its models lay out
    pictures by that. Without, they would take the positions of text, and learn to see otherwise than post-training shows."""
    if KINDS not in seen:
        return {}
    kinds = torch.zeros_like(ids)
    for row, given in enumerate(seen[KINDS]):
        kinds[row, : len(given)] = torch.as_tensor(given)
    return {KINDS: kinds}


def pack(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[list[int]], solutions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and the solutions that follow them as ids [B, T] and labels [B, T]; see :func:`encode_examples`."""
    targets = tokenizer([solution + tokenizer.eos_token for solution in solutions], add_special_tokens=False)["input_ids"]
    width = max(len(prompt) + len(target) for prompt, target in zip(prompts, targets, strict=True))
    ids = torch.full((len(solutions), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        end = len(prompt) + len(target)
        ids[row, :end] = torch.tensor(prompt + target)
        labels[row, len(prompt) : end] = ids[row, len(prompt) : end]
    return ids, labels


def pretrain(
    model: PreTrainedModel,
    reader: PreTrainedTokenizerFast | ProcessorMixin,
    training: Mapping[str, Any],
    seed: int,
    progress: Callable[[int, int, float], None] | None,
) -> None:
    """Next-token prediction on fresh problems; linear warm-up, then a cosine to zero. Changes ``model`` in place.

    Args:
        reader: the model's tokenizer; its processor, if the examples have pictures.
        training: the keys of ``prepare.model.pretraining``.
        seed: of the problems drawn.
        progress: called after each step with (step, steps, loss in nats per trained token).
    """
    steps, source = training["steps"], example_source(training)
    generator = random.Random(seed)
    warmup = training["warmup_ratio"] * steps
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training["lr"], betas=tuple(training["betas"]), weight_decay=training["weight_decay"]
    )
    model.train()
    for step in range(1, steps + 1):
        rate = min(1.0, step / warmup) if step <= warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = training["lr"] * rate
        examples = source.draw(generator, training["batch_size"])
        if isinstance(reader, ProcessorMixin):
            encode = encode_pictures if len(examples[0]) == 3 else encode_chats
            inputs, labels = encode(reader, examples)
        else:
            ids, labels = encode_examples(reader, examples)
            inputs = {"input_ids": ids}  # right padding under a causal mask: no trained token sees it, so no attention mask
        logits = model(**inputs, use_cache=False).logits  # [B, T, V]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training["grad_clip"])
        optimizer.step()
        if progress is not None:
            progress(step, steps, loss.item())
    model.eval()
