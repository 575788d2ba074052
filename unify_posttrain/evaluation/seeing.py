"""Prompts of an evaluation that show pictures: their ids, with as many pads as the model makes tokens of each, and the pictures.

Both are made by the processor of the model, as training makes them (`unify_posttrain.rollout.pictures`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.evaluation.requests import Request

if TYPE_CHECKING:  # it needs torch, which an evaluation whose samples are all there does without
    from unify_posttrain.rollout.pictures import PictureReader

MARK = "<image>"  # of a picture in the text of a row, as in training


@dataclass(frozen=True)
class Sight:
    """How a model is shown pictures; its processor has the template of the evaluation."""

    reader: PictureReader

    def ids(self, problem: Problem, where: str) -> list[int]:
        """Of the prompt, pads included.

        Raises:
            TemplateRefusedError: the template does not take it.
            ValueError: a picture that cannot be read, or another number of marks than of pictures; names the row.
        """
        try:
            return list(self.reader.read(picture_messages(problem), where).ids)
        except OSError as error:  # what Pillow raises for a file that is no picture
            raise ValueError(f"{where}: its pictures cannot be read ({error}); mend the row, or leave it out") from error
        except ValueError as error:
            raise error if str(error).startswith(where) else ValueError(f"{where}: {error}") from error

    def shown(self, requests: Sequence[Request], problems: Mapping[int, Problem]) -> list[Request]:
        """Requests with the pictures of their prompts; those of a row share them."""
        from unify_posttrain.rollout.pictures import open_pictures

        opened: dict[int, tuple[Any, ...]] = {}
        for request in requests:
            if request.row not in opened:
                opened[request.row] = tuple(open_pictures(problems[request.row].pictures, self.reader.patch))
        return [replace(request, images=opened[request.row]) for request in requests]

    def digest(self, prompts: str, problems: Sequence[Problem]) -> str:
        """Of the prompts, given by their own digest, and of the files that they show."""
        found = hashlib.sha256(prompts.encode())
        for problem in problems:
            for each in problem.pictures:
                image = str(each["image"])
                found.update(image.encode() if image.startswith("data:") else hashlib.sha256(Path(image).read_bytes()).digest())
        return found.hexdigest()


def picture_messages(problem: Problem) -> list[dict[str, Any]]:
    """The messages of a prompt with its pictures where their marks stand, as verl's data set makes them.

    Raises:
        ValueError: another number of marks than of pictures.
    """
    marks = sum(str(message["content"]).count(MARK) for message in problem.messages)
    if marks != len(problem.pictures):
        raise ValueError(f"the prompt has {marks} marks {MARK} for {len(problem.pictures)} pictures; give one for each")
    left = iter(problem.pictures)
    return [
        {**message, "content": [_part(text, left) for text in re.split(f"({MARK})", message["content"]) if text]}
        for message in problem.messages
    ]


def _part(text: str, pictures: Any) -> dict[str, Any]:
    return {"type": "image", **next(pictures)} if text == MARK else {"type": "text", "text": text}


def sight_of(folder: Path, template: ChatTemplate, problems: Sequence[Problem], engine: str, name: str) -> Sight | None:
    """How a model is shown the pictures of a benchmark; None: it has none.

    Args:
        folder: of the model.
        template: of the evaluation.
        problems: of the benchmark.
        engine: name of the engine.
        name: of the benchmark, for messages.

    Raises:
        ValueError: an engine that is asked by text alone, or a model that sees none.
    """
    first = next((problem for problem in problems if problem.pictures), None)
    if first is None:
        return None
    if engine != "hf":
        raise ValueError(f"{name}: row {first.row} shows pictures, and engine={engine} is asked by text alone; set engine=hf")
    from transformers import AutoProcessor

    from unify_posttrain.rollout.pictures import PictureReader

    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"{name}: row {first.row} shows pictures, and the processor of {folder} cannot be made ({error})"
        ) from error
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"{name}: row {first.row} shows pictures, and model {folder} sees none; take a multimodal model, or leave such rows out"
        )
    processor.chat_template = template.tokenizer.chat_template
    return Sight(PictureReader(processor, template.options))
