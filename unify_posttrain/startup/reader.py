"""How targets are read: prompts rendered and tokenised exactly as verl's agent loop does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from unify_posttrain.algorithms import FusionConfig
from unify_posttrain.chat import ChatTemplate
from unify_posttrain.experience.demonstrations import DemonstrationReader
from unify_posttrain.experience.transcript import TurnFrame
from unify_posttrain.rollout.pictures import PictureReader, image_frame
from unify_posttrain.tasks.environment import with_images


def turn_frame(template: ChatTemplate) -> TurnFrame:
    """What the template puts around what the user says between two answers.

    Raises:
        TemplateRefusedError, ValueError: it makes no turns of which tokens could be kept; names the template.
    """
    tokenizer = template.tokenizer
    return TurnFrame.from_template(
        template, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token
    )


def make_reader(
    tokenizer: Any,
    fusion: FusionConfig,
    template_kwargs: Mapping[str, Any],
    pictures: PictureReader | None = None,
    environment: Mapping[str, Any] | None = None,
) -> DemonstrationReader:
    """A reader that renders prompts exactly as verl's agent loop does, and ends where a chat template does not take one.

    Args:
        pictures: of a model that sees, whose processor renders its prompts.
        environment: node of the configuration, whose targets may show images.
    """
    template = ChatTemplate(tokenizer, template_kwargs)

    def render(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[int]]:
        if pictures is not None:
            seen = pictures.read(messages)
            return seen.text, list(seen.ids)
        return template.text(messages), template.ids(messages)

    return DemonstrationReader(
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        render=render,
        eos_id=tokenizer.eos_token_id,
        max_length=fusion.demo.max_length,
        overlong=fusion.demo.overlong,
        select=fusion.demo.select,
        seed=fusion.seed,
        with_probabilities=fusion.shaping.name == "target_prob",
        eos_text=tokenizer.eos_token,
        frame=cache(lambda: turn_frame(template)),
        with_images=None if environment is None else with_images(environment),
        image_frame=None if pictures is None else cache(lambda: image_frame(tokenizer)),
    )
