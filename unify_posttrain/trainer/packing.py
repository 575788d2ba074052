"""Demonstrations as rows for the workers: tokens, and of a model that sees what it needs of pictures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from unify_posttrain.experience.demonstrations import Demonstration, demonstration_tensors
from unify_posttrain.experience.rows import object_column
from unify_posttrain.rollout.pictures import PictureReader

INPUTS_COLUMN = "multi_modal_inputs"  # verl's; an empty mapping for a row of text


@dataclass(frozen=True)
class Packing:
    """How demonstrations are packed in a run.

    Attributes:
        prompt_length, response_length: L_p and T in tokens.
        pad_id: padding token.
        pictures: of a model that sees; None for one of text.
    """

    prompt_length: int
    response_length: int
    pad_id: int
    pictures: PictureReader | None = None

    def rows(self, demonstrations: Sequence[Demonstration]) -> tuple[dict[str, Tensor], np.ndarray]:
        """(B, …) tensors as `demonstration_tensors` makes them, and verl's column of what each row's pictures are.

        With pictures the positions are (B, 4, L), in rows of text as well: a batch has one form of them.

        Raises:
            ValueError: a prompt or response does not fit.
            OSError: a picture that was there when the run began cannot be read.
        """
        tensors = demonstration_tensors(demonstrations, self.prompt_length, self.response_length, self.pad_id)
        if self.pictures is None:
            return tensors, object_column([{} for _ in demonstrations])
        inputs = [self.pictures.inputs(demonstration.pictures) for demonstration in demonstrations]
        tensors["position_ids"] = self.pictures.positions(tensors["input_ids"], tensors["attention_mask"], inputs)
        return tensors, object_column(inputs)


def picture_reader(config: Any, processor: Any) -> PictureReader | None:
    """Of a run whose model sees; None without a processor. Remembers the prompts of a batch."""
    if processor is None:
        return None
    return PictureReader(processor, config.data.get("apply_chat_template_kwargs", {}) or {}, keep=config.data.train_batch_size)
