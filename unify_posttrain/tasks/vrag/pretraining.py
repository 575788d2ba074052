"""Worked episodes for the tiny base model: the protocol of VRAG, shown on reports whose numbers nobody asks about later.

What a model of half a million weights can learn from them is how to search, enlarge and answer. It reads no page, so that what it
answers is a guess.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from unify_posttrain.tasks.vrag.convert import Question
from unify_posttrain.tasks.vrag.protocol import question_text
from unify_posttrain.tasks.vrag.sample import REPORTS, draw_report, questions_of
from unify_posttrain.tasks.vrag.targets import IMAGE
from unify_posttrain.tasks.vrag.views import Showing

FRAME = 12  # more tokens than stand around a message, or around an image in it

Chat = list[dict[str, Any]]


class PretrainingExamples:
    """See `unify_posttrain.tasks.pretraining.ExampleSource`: conversations, and the images that they show.

    Args:
        settings: of these, `seeds` are those of the reports; the others are keys of conf/task/vrag.yaml.

    Raises:
        ValueError: images that no size fits.
    """

    KEYS = ("seeds", "zoom", "max_turns", "crop_tag", "crop_pad_px", "min_crop_px", "min_pixels", "max_pixels")
    largest_picture = 0  # none stands beside a question; those of answers are counted in `longest`

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.crop_tag, self.max_turns, self.zoom = settings["crop_tag"], settings["max_turns"], settings["zoom"]
        self.showing = Showing(*(settings[key] for key in ("min_pixels", "max_pixels", "crop_pad_px", "min_crop_px")))
        self.seeds = list(settings["seeds"])
        self._known: list[tuple[Chat, list[Any]]] = []

    @property
    def longest(self) -> tuple[str, str]:
        """See `ExampleSource`; an image is as many characters as it has tokens."""
        longest = ("", "")
        for chat, images in self._examples():
            shown = "".join(" " * (FRAME + image.width * image.height // 784) for image in images)
            said = [" " * FRAME + str(message["content"]) for message in chat[1:] if isinstance(message["content"], str)]
            longest = max(longest, (chat[0]["content"], shown + "".join(said)), key=lambda pair: len(pair[0]) + len(pair[1]))
        return longest

    def draw(self, generator: random.Random, count: int) -> list[tuple[Chat, list[Any]]]:
        """See `ExampleSource`: messages with parts {type: image}, and the images in their order."""
        return [generator.choice(self._examples()) for _ in range(count)]

    def _examples(self) -> Sequence[tuple[Chat, list[Any]]]:
        if not self._known:
            for seed in self.seeds:
                for report in REPORTS:
                    pages = draw_report(report, seed)
                    drawn = {f"{report.stem}_{number}": page.image for number, page in enumerate(pages.drawn, start=1)}
                    self._known += [
                        self._example(each, drawn) for each in questions_of(pages, seed, self.showing, self.crop_tag, self.zoom)
                    ]
        return self._known

    def _example(self, question: Question, drawn: Mapping[str, Any]) -> tuple[Chat, list[Any]]:
        from PIL import Image

        images = []
        for entry in map(json.loads, question.target_images):
            left, top, right, bottom = entry["rect"]
            size = self.showing.size((right - left, bottom - top))
            page = drawn[entry["page_id"]].convert("RGB")
            images.append(page.crop((left, top, right, bottom)).resize(size, Image.Resampling.BICUBIC))
        answers: Chat = [
            {**message, "content": [{"type": "image"}] if message["content"] == IMAGE else message["content"]}
            for message in question.target
        ]
        asked = question_text(question.text, self.crop_tag, self.max_turns)
        return [{"role": "user", "content": asked}, *answers], images
