"""How targets are read: prompts rendered and tokenised exactly as verl's agent loop does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl.utils.chat_template import apply_chat_template
from verl.utils.tokenizer import normalize_token_ids

from unify_posttrain.algorithms import FusionConfig
from unify_posttrain.experience.demonstrations import DemonstrationReader


def make_reader(tokenizer: Any, fusion: FusionConfig, template_kwargs: Mapping[str, Any]) -> DemonstrationReader:
    """A reader that renders prompts exactly as verl's agent loop does."""

    def render(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[int]]:
        prompt = [dict(message) for message in messages]
        text = apply_chat_template(tokenizer, prompt, tokenize=False, **template_kwargs)
        return text, normalize_token_ids(apply_chat_template(tokenizer, prompt, tokenize=True, **template_kwargs))

    return DemonstrationReader(
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        render=render,
        eos_id=tokenizer.eos_token_id,
        max_length=fusion.demo.max_length,
        overlong=fusion.demo.overlong,
        select=fusion.demo.select,
        seed=fusion.seed,
        with_probabilities=fusion.shaping.name == "target_prob",
    )
