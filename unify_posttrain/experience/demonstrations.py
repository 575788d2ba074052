"""Demonstration rows from target columns, by tokenisation alone: no demonstration passes through a generation engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unify_posttrain.chat import TemplateRefusedError, target_ids
from unify_posttrain.experience.feedback import ImageFrame
from unify_posttrain.experience.pictures import Reference, picture_references, reference
from unify_posttrain.experience.targets import Target, targets_of
from unify_posttrain.experience.transcript import TurnFrame
from unify_posttrain.experience.turn_targets import Replayed, replay

OVERLONG_POLICIES = ("drop", "truncate", "error")
SELECTIONS = ("first", "random")
PROBABILITY_COLUMN = "target_probs"
TARGET_IMAGES = "target_images"  # what the targets of a row show between two answers, in an environment's own words


@dataclass(frozen=True)
class Demonstration:
    """A tokenised target for one prompt.

    Attributes:
        row_id: position of the prompt in the concatenated training files (stable over runs).
        target_index: which of several targets.
        prompt_ids: rendered prompt.
        response_ids: target tokens, then EOS if the target is complete.
        probabilities: a teacher's probability of each of them, for the `target_prob` shape; empty if not asked for.
        mask: of a target of several turns, 1 on the tokens of answers and 0 on what was said between them; empty: all are one
            answer's.
        pictures: what the prompt shows, then the target; the ids hold as many pads as the model sees tokens of them.
        origins: where each image of the target comes from, as `ImagePart.origin` says it; for people who look at it.
    """

    row_id: int
    target_index: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    probabilities: tuple[float, ...] = ()
    mask: tuple[int, ...] = ()
    pictures: tuple[Reference, ...] = ()
    origins: tuple[Mapping[str, Any], ...] = ()

    @property
    def key(self) -> tuple[int, int]:
        """Identifies the demonstration over steps and runs; its score is cached under it."""
        return self.row_id, self.target_index

    @property
    def answers(self) -> list[tuple[int, ...]]:
        """The tokens of each answer, one after another."""
        if not self.mask:
            return [self.response_ids]
        starts = [place for place, kept in enumerate(self.mask) if kept and not (place and self.mask[place - 1])]
        lengths = [(*self.mask[start:], 0).index(0) for start in starts]
        return [self.response_ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


@dataclass(frozen=True)
class DemonstrationReader:
    """Turns target columns into `Demonstration`s.

    Attributes:
        encode: text -> token ids, adding no special tokens.
        render: prompt messages -> (text, token ids) with the generation prompt; pads of pictures among the ids.
        eos_id: ends every complete target, once.
        max_length: longest response in tokens, EOS included (T).
        overlong: what happens to a longer one: `drop` (as if missing), `truncate` (first T ids; EOS is *not* forced in, the
            model is not taught to stop where the text does not), or `error`.
        select: which of several targets: `first`, or `random`, drawn from (seed, step, row_id).
        seed: seed of the draw.
        with_probabilities: read the column `target_probs` too.
        eos_text: how the end token is written; a target that ends with it gets no second one. None: the ids decide.
        frame: makes the tokens that the chat template puts around what the user says between two answers.
        with_images: puts the images of the column `target_images` into the messages of a target; None: nothing shows any.
        image_frame: makes the ids around such an image.
    """

    encode: Callable[[str], list[int]]
    render: Callable[[Sequence[Mapping[str, Any]]], tuple[str, list[int]]]
    eos_id: int
    max_length: int
    overlong: str = "drop"
    select: str = "first"
    seed: int = 0
    with_probabilities: bool = False
    eos_text: str | None = None
    frame: Callable[[], TurnFrame] | None = None
    with_images: Callable[[Sequence[Mapping[str, Any]], Sequence[str]], list[dict[str, Any]]] | None = None
    image_frame: Callable[[], ImageFrame] | None = None

    def __post_init__(self) -> None:
        if self.overlong not in OVERLONG_POLICIES:
            raise ValueError(f"fusion.demo.overlong={self.overlong!r}; choose one of {', '.join(OVERLONG_POLICIES)}")
        if self.select not in SELECTIONS:
            raise ValueError(f"fusion.demo.select={self.select!r}; choose one of {', '.join(SELECTIONS)}")
        if self.max_length < 1:
            raise ValueError(f"fusion.demo.max_length={self.max_length} must be at least 1")

    def read(self, row_id: int, prompt: Sequence[Mapping[str, Any]], row: Mapping[str, Any], step: int) -> Reading:
        """One prompt's demonstration at a training step.

        Args:
            row_id: see `Demonstration`.
            prompt: messages of the prompt.
            row: the data row; `target` (messages, JSON of messages, text, or null) and/or `target_lst` (list of text). Messages
                are one of the assistant, or assistant, user, …, assistant.
            step: training step, for the random draw.

        Raises:
            ValueError: overlong target under `overlong=error`, a target of a wrong type, or a chat template that does not take
                the prompt or makes no turns; names the row.
        """
        targets = targets_of(row, row_id)
        if not targets:
            return Reading(None, missing=True)
        index = 0
        if self.select == "random" and len(targets) > 1:
            index = int(np.random.default_rng([self.seed, step, row_id]).integers(len(targets)))
        try:
            prompt_text, prompt_ids = self.render(prompt)
        except TemplateRefusedError as error:
            raise TemplateRefusedError(f"training row {row_id}: {error}") from error
        target = targets[index].after(prompt_text)
        if not target.texts[0]:
            return Reading(None, missing=True)
        found = self._tokens(target, row, row_id)
        ids, mask, images = list(found.ids), found.mask, found.images
        overlong = len(ids) > self.max_length
        if overlong and self.overlong == "error":
            raise ValueError(
                f"training row {row_id}: the demonstration has {len(ids)} tokens with EOS, data.max_response_length allows "
                f"{self.max_length}; raise it, or set fusion.demo.overlong=drop or truncate"
            )
        if overlong and self.overlong == "drop":
            return Reading(None, overlong=True)
        probabilities = teacher_probabilities(row, row_id, len(ids)) if self.with_probabilities else ()
        if images and overlong:  # an image is shown as a whole or not at all
            within = found.within(self.max_length, self.overlong)
            if within is None:
                return Reading(None, overlong=True)
            ids, mask, images = list(within.ids), within.mask, within.images
        # What the user says is for the answer behind it, so nothing ends with it.
        kept = slice(self.max_length if not mask else 1 + max(place for place, of in enumerate(mask[: self.max_length]) if of))
        pictures = (*picture_references(prompt), *(reference(part.image) for part in images))
        origins = tuple(dict(part.origin) for part in images)
        demonstration = Demonstration(
            row_id, index, tuple(prompt_ids), tuple(ids[kept]), probabilities[kept], mask[kept], pictures, origins
        )
        return Reading(demonstration, overlong=overlong)

    def _tokens(self, target: Target, row: Mapping[str, Any], row_id: int) -> Replayed:
        """Ids and, of several turns, the mask and the images that are shown.

        Raises:
            ValueError: an image that cannot be shown, or for a model that sees none; names the row.
        """
        if len(target.texts) == 1:
            return Replayed(tuple(target_ids(self.encode, target.texts[0], self.eos_id, self.eos_text)), (), ())
        if self.frame is None:
            raise TypeError("a reader of targets of several turns needs a frame")
        messages: Sequence[Mapping[str, Any]] = target.messages
        named = row.get(TARGET_IMAGES)
        frame = None
        try:
            if self.with_images is not None:  # without images, too: a mark that stands for none is a fault of the row
                messages = self.with_images(messages, [] if named is None else [str(entry) for entry in named])
                frame = None if self.image_frame is None else self.image_frame()
            return replay(messages, self.frame(), self.encode, self.eos_id, self.eos_text, frame)
        except ValueError as error:
            raise ValueError(f"training row {row_id}: {error}") from error


@dataclass(frozen=True)
class Reading:
    """Result of reading a target: the demonstration if there is a usable one, and what was wrong with it."""

    demonstration: Demonstration | None
    missing: bool = False
    overlong: bool = False


def teacher_probabilities(row: Mapping[str, Any], row_id: int, tokens: int) -> tuple[float, ...]:
    """Column `target_probs`: one number in [0, 1] per target token; that of EOS may be absent and is then 1.

    Raises:
        ValueError: absent, of another length, or not probabilities.
    """
    value = row.get("target_probs")
    numbers = () if value is None else tuple(float(number) for number in value)
    if len(numbers) not in (tokens, tokens - 1) or any(not 0 <= number <= 1 for number in numbers):
        raise ValueError(
            f"training row {row_id}: column 'target_probs' must hold {tokens} probabilities, one per target token with EOS, and "
            f"holds {len(numbers)} numbers; fusion.shaping.name=target_prob reads them"
        )
    return (*numbers, *(1.0,) * (tokens - len(numbers)))


def demonstration_tensors(
    demonstrations: Sequence[Demonstration], prompt_length: int, response_length: int, pad_id: int
) -> dict[str, Tensor]:
    """Pack demonstrations exactly as verl's agent loop packs rollouts: prompts padded left, responses right.

    Args:
        demonstrations: B of them.
        prompt_length, response_length: L_p and T in tokens.
        pad_id: padding token.

    Returns:
        prompts (B, L_p), responses (B, T), input_ids / attention_mask / position_ids (B, L_p+T), all int64; response_mask
        (B, T) int64 and prefix_mask (B, T) bool, both set on the tokens of answers through EOS and nowhere else; target_probs
        (B, T) float32 if the demonstrations have teacher probabilities.

    Raises:
        ValueError: a prompt or response does not fit.
    """
    rows, width = len(demonstrations), prompt_length + response_length
    input_ids = torch.full((rows, width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((rows, width), dtype=torch.long)
    for row, demonstration in enumerate(demonstrations):
        p, r = len(demonstration.prompt_ids), len(demonstration.response_ids)
        if p > prompt_length or r > response_length:
            raise ValueError(
                f"training row {demonstration.row_id}: prompt of {p} and demonstration of {r} tokens do not fit "
                f"data.max_prompt_length={prompt_length}, data.max_response_length={response_length}"
            )
        ids = torch.tensor([*demonstration.prompt_ids, *demonstration.response_ids], dtype=torch.long)
        input_ids[row, prompt_length - p : prompt_length + r] = ids
        attention_mask[row, prompt_length - p : prompt_length + r] = 1
    response_mask = attention_mask[:, prompt_length:].clone()
    for row, demonstration in enumerate(demonstrations):
        if demonstration.mask:
            response_mask[row, : len(demonstration.mask)] = torch.tensor(demonstration.mask)
    teacher = {}
    if any(demonstration.probabilities for demonstration in demonstrations):
        teacher["target_probs"] = torch.ones((rows, response_length), dtype=torch.float32)
        for row, demonstration in enumerate(demonstrations):
            teacher["target_probs"][row, : len(demonstration.probabilities)] = torch.tensor(demonstration.probabilities)
    return {
        **teacher,
        "prompts": input_ids[:, :prompt_length].clone(),
        "responses": input_ids[:, prompt_length:].clone(),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=-1) - 1).clamp(min=0),
        "response_mask": response_mask,
        "prefix_mask": response_mask.bool(),
    }
