"""The tiny base model that sees: a Qwen2.5-VL of half a million weights with random values, and its processor.

Its vision tower has one block with window attention and one with full attention, as the real one has both. A picture of one cell of
`task=shapes` is one image token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast, ProcessorMixin, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from unify_posttrain.tasks.vision_tokenizer import (
    CHAT_TOKENS,
    IMAGE_MARKS,
    IMAGE_PAD,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    build_processor,
    build_tokenizer,
)

KEYS = ("layers", "hidden_size", "heads", "intermediate_size", "patch", "merge", "most_image_tokens")
WINDOW_TOKENS = 4  # side of a window of the vision tower, in image tokens, as in Qwen2.5-VL


def build_processor_for(settings: Mapping[str, Any]) -> ProcessorMixin:
    """Tokenizer and image processor by the keys of ``prepare.model``."""
    vision = settings["vision"]
    unit = vision["patch"] * vision["merge"]
    tokenizer = build_tokenizer(settings["max_position_embeddings"])
    return build_processor(tokenizer, vision["patch"], vision["merge"], vision["most_image_tokens"] * unit**2)


def prompt_tokens(settings: Mapping[str, Any], source: Any, question: str) -> int:
    """Tokens of the prompt with a question and the largest picture of a source of examples."""
    unit = settings["vision"]["patch"] * settings["vision"]["merge"]
    image = -((-source.largest_picture // unit) ** 2)
    return image + IMAGE_MARKS + len(question) + CHAT_TOKENS


def new_model(settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """The model by the keys of ``prepare.model``, with random weights in float32."""
    head, vision = settings["hidden_size"] // settings["heads"], settings["vision"]
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": settings["hidden_size"],
            "num_hidden_layers": settings["layers"],
            "num_attention_heads": settings["heads"],
            "num_key_value_heads": settings["kv_heads"],
            "intermediate_size": settings["intermediate_size"],
            "max_position_embeddings": settings["max_position_embeddings"],
            # Of the rotary frequencies a quarter is time's, the others are height's and width's in equal parts, as in Qwen2.5-VL.
            "rope_scaling": {"type": "default", "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16]},
            "rope_theta": settings["rope_theta"],
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": vision["layers"],
            "hidden_size": vision["hidden_size"],
            "num_heads": vision["heads"],
            "intermediate_size": vision["intermediate_size"],
            "out_hidden_size": settings["hidden_size"],
            "patch_size": vision["patch"],
            "spatial_patch_size": vision["patch"],
            "spatial_merge_size": vision["merge"],
            "temporal_patch_size": 2,
            "window_size": WINDOW_TOKENS * vision["patch"] * vision["merge"],
            "fullatt_block_indexes": [vision["layers"] - 1],
        },
        image_token_id=ids(IMAGE_PAD),
        video_token_id=ids(VIDEO_PAD),
        vision_start_token_id=ids(VISION_START),
        vision_end_token_id=ids(VISION_END),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2_5_VLForConditionalGeneration(config).float()
