"""What a model that sees is given beside tokens: pictures as its processor makes them, and positions of four rows.

verl's agent loops do the same for rollouts. Here it is done for whatever does not come from them: length filters, demonstrations,
replayed prompts and the transformers engine. Both sides ask the same processor, so a demonstration's ids, pixels and positions are
those of a rollout of the same prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unify_posttrain.backend.seams import rope_inputs
from unify_posttrain.chat import ChatTemplate, Messages
from unify_posttrain.experience.feedback import ImageFrame
from unify_posttrain.experience.pictures import Reference, picture_references
from unify_posttrain.rollout.sampling import BAN

# No text holds them: the model is given them around pictures, and one that it sampled would be a picture without pixels.
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
PIXELS, GRIDS, LENGTHS = "pixel_values", "image_grid_thw", "images_seqlens"  # verl's names

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """A prompt as the model gets it.

    Attributes:
        text: rendered, with one mark per picture.
        ids: with as many pads per picture as it has tokens.
        inputs: `pixel_values` (patches, D), `image_grid_thw` (pictures, 3) and verl's `images_seqlens` (pictures,); empty for a
            prompt of text.
    """

    text: str
    ids: tuple[int, ...]
    inputs: Inputs


@dataclass
class PictureReader:
    """Renders prompts of a model that sees, and makes what the model needs of their pictures.

    Attributes:
        processor: of the model, from verl's `hf_processor`, which binds `get_rope_index` to it.
        options: `data.apply_chat_template_kwargs`.
        keep: as many prompts are remembered, so that one that is read several times in a step is processed once.
    """

    processor: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: int = 0
    _known: OrderedDict[str, Seen] = field(default_factory=OrderedDict, init=False, repr=False)

    def read(self, messages: Messages, where: str = "") -> Seen:
        """A prompt with its pictures.

        Args:
            messages: as verl's dataset makes them: content is text, or parts {type: text | image, …}.
            where: the row, for errors.

        Raises:
            TemplateRefusedError: the template does not take the messages.
            OSError, ValueError: a picture cannot be read.
        """
        text, shown = ChatTemplate(self.processor, self.options).text(messages, where), picture_references(messages)
        key = json.dumps([text, [dict(each) for each in shown]], sort_keys=True)
        if key not in self._known:
            pictures = open_pictures(shown, self.patch)
            encoded = self.processor(text=[text], images=pictures or None, return_tensors="pt")
            self._known[key] = Seen(text, tuple(encoded["input_ids"][0].tolist()), _inputs(encoded))
        self._known.move_to_end(key)
        seen = self._known[key]
        while len(self._known) > self.keep:
            self._known.popitem(last=False)
        return seen

    def lengths(self, messages: Messages, where: str = "") -> tuple[int, list[int]]:
        """Tokens of a prompt, its pictures' included, and of each picture, as `read` would give them.

        Pictures are opened and made as large as the model sees them, so that one that cannot be read is noticed, but no pixel
        becomes a number of a tensor: a data set is looked at row by row, and torch's threads spin beside other processes.
        """
        text = ChatTemplate(self.processor, self.options).text(messages, where)
        maker = self.processor.image_processor
        pictures = open_pictures(picture_references(messages), self.patch)
        patches = [maker.get_number_of_image_patches(each.height, each.width, {}) for each in pictures]
        tokens = [count // maker.merge_size**2 for count in patches]
        return len(self.processor.tokenizer(text)["input_ids"]) - len(tokens) + sum(tokens), tokens

    def inputs(self, shown: Sequence[Reference]) -> Inputs:
        """What the model needs of some pictures; see `Seen`."""
        pictures = open_pictures(shown, self.patch)
        return picture_inputs(self.processor, pictures)

    def positions(self, input_ids: Tensor, attention_mask: Tensor, inputs: Sequence[Inputs]) -> Tensor:
        """(B, 4, L) positions as verl gives them to the model: of text, then time, height and width.

        Args:
            input_ids, attention_mask: (B, L).
            inputs: (B,) of each row.
        """
        grids = [each[GRIDS] for each in inputs if GRIDS in each]
        seen, _ = self.processor.get_rope_index(
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_grid_thw=torch.cat(grids) if grids else None,
            **rope_inputs(input_ids, self.processor),
        )
        attended = attention_mask.bool()
        text = torch.where(attended, attention_mask.cumsum(dim=-1) - 1, 1)
        return torch.cat([text.unsqueeze(1), seen.transpose(0, 1)], dim=1)

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return int(self.processor.image_processor.patch_size)


def open_pictures(shown: Sequence[Reference], patch: int) -> list[Any]:
    """Pictures in RGB, made as large as the model sees them; what verl's agent loops do with the parts of a message.

    Args:
        shown: `image` is a path or a data URI; further keys (`min_pixels`, `resized_height`, …) are qwen_vl_utils'.
        patch: pixels of a patch's side.
    """
    from qwen_vl_utils import fetch_image

    return [fetch_image(dict(each), image_patch_size=patch) for each in shown]


def kept_pixels(processor: Any) -> tuple[int, int]:
    """The least and the most pixels of pictures that keep their size on the way to the model, if their sides are multiples of a
    token's: the bounds of the processor, and of `open_pictures`."""
    from qwen_vl_utils.vision_process import IMAGE_MAX_TOKEN_NUM, IMAGE_MIN_TOKEN_NUM

    maker = processor.image_processor
    token = (maker.patch_size * maker.merge_size) ** 2
    least, most = maker.size["shortest_edge"], maker.size["longest_edge"]
    return max(int(least), IMAGE_MIN_TOKEN_NUM * token), min(int(most), IMAGE_MAX_TOKEN_NUM * token)


def image_frame(tokenizer: Any) -> ImageFrame:
    """The ids around an image of feedback.

    Raises:
        ValueError: the tokenizer is of a model that sees none.
    """
    return ImageFrame.from_names(tokenizer.convert_tokens_to_ids, tokenizer.unk_token_id)


def picture_inputs(processor: Any, pictures: Sequence[Any]) -> Inputs:
    """What the model needs of opened pictures; empty if there are none."""
    if not pictures:
        return {}
    return _inputs(processor.image_processor(images=list(pictures), return_tensors="pt"))


def picture_key(inputs: Inputs) -> bytes:
    """Equal for equal pictures: prompts that differ in their pictures alone have the same ids."""
    if not inputs:
        return b""
    digest = hashlib.sha256(inputs[GRIDS].numpy().tobytes())
    digest.update(inputs[PIXELS].contiguous().numpy().tobytes())
    return digest.digest()


def picture_keys(pictures: Sequence[Inputs]) -> list[bytes]:
    """The key of each; rows of a prompt share what they show, which is then looked at once."""
    known = {id(inputs): picture_key(inputs) for inputs in {id(each): each for each in pictures}.values()}
    return [known[id(inputs)] for inputs in pictures]


def banned_bias(tokenizer: Any) -> dict[int, float]:
    """`logit_bias` of a request to a model that sees: no token of pictures is ever sampled."""
    known = tokenizer.get_added_vocab()
    return {known[token]: BAN for token in VISION_TOKENS if token in known}


def _inputs(encoded: Mapping[str, Any]) -> Inputs:
    if GRIDS not in encoded:
        return {}
    pixels, grids = encoded[PIXELS], encoded[GRIDS]
    return {PIXELS: pixels, GRIDS: grids, LENGTHS: torch.repeat_interleave(grids[:, 1] * grids[:, 2], grids[:, 0])}
