"""Tokenizer and image processor of the tiny model that sees, in the files and with the special tokens of Qwen2.5-VL.

Bytes are tokens. Only the names of roles are merged, as they are single tokens of Qwen's vocabulary too: what the chat template
puts around a message or a picture is then as many tokens as with the real model.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast, ProcessorMixin, Qwen2TokenizerFast
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl_fast import Qwen2VLImageProcessorFast
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, VISION_PAD = "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PAD, START, END, VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD)
ROLES = ("system", "user", "assistant")

CHAT_TOKENS = 8  # beside question and picture, in the prompt of one message: see CHAT_TEMPLATE
IMAGE_MARKS = 2  # around the tokens of a picture
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in " + str(list(ROLES)) + " -%}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ '; use one of " + ", ".join(ROLES) + "') -}}"
    "{%- endif -%}"
    "{{- '" + START + "' ~ message['role'] ~ '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '" + VISION_START + IMAGE_PAD + VISION_END + "' -}}"
    "{%- elif part['type'] == 'video' -%}{{- '" + VISION_START + VIDEO_PAD + VISION_END + "' -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '" + END + "\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '" + START + "assistant\\n' -}}{%- endif -%}"
)


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token per byte and per role, and the special tokens."""
    merges = list(dict.fromkeys(pair for role in ROLES for pair in _merges(role)))
    tokens = [*sorted(ByteLevel.alphabet()), *dict.fromkeys(left + right for left, right in merges)]
    return Qwen2TokenizerFast(
        tokenizer_object=_byte_pairs({token: index for index, token in enumerate(tokens)}, merges),
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, patch: int, merge: int, most_pixels: int) -> ProcessorMixin:
    """The processor of the model: its pictures keep their size if both sides are multiples of patch x merge.

    Args:
        tokenizer: see :func:`build_tokenizer`.
        patch: pixels of a patch's side.
        merge: patches of an image token's side.
        most_pixels: of a picture; a larger one is made smaller.
    """
    unit = patch * merge
    sizes = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": 2}
    # Not as `size`, which says the same: the released models name them so, and vLLM reads these names alone.
    bounds = {"min_pixels": 4 * unit**2, "max_pixels": most_pixels}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorFast(**bounds, **sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**bounds, **sizes),
        chat_template=CHAT_TEMPLATE,
    )


def _merges(word: str) -> Iterator[tuple[str, str]]:
    """Pairs that make one token of a word, from left to right."""
    for end in range(1, len(word)):
        yield word[:end], word[end]


def _byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return core
