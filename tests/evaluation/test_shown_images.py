"""Evaluation of episodes that show images: requests hold the images of their pads, and the engine generates from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.evaluation.test_episodes import HOW
from tests.tasks.vrag.kit import make_corpus, row, settings
from unify_posttrain.chat import ChatTemplate
from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.evaluation.engines import start_engine
from unify_posttrain.evaluation.episode_results import episode_entry
from unify_posttrain.evaluation.episodes import EpisodePlayer
from unify_posttrain.evaluation.requests import EngineSettings, Output, Request

SEARCH, CROP, ANSWER = "<search>revenue forecast</search>", "<bbox>[10, 10, 90, 70]</bbox>", "<answer>12</answer>"
SMALL = {"min_pixels": 12544, "max_pixels": 25088}


@pytest.fixture(scope="module")
def processor(seeing_folder: Path) -> Any:
    return AutoProcessor.from_pretrained(seeing_folder, use_fast=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("evaluated") / "corpus", (300, 200))


def problem(number: int, kind: str) -> Problem:
    made = row()
    extra = {**made["extra_info"], "content_type": kind}
    asked = [{"role": "user", "content": "How much?"}]
    return Problem(number, "vrag", asked, made["reward_model"]["ground_truth"], extra)


def test_requests_hold_the_images_of_their_pads_and_results_the_pages(corpus: Path, processor: Any) -> None:
    tokenizer = processor.tokenizer
    pad, asked = processor.image_token_id, []
    scripts = {0: [SEARCH, CROP, ANSWER], 1: [ANSWER], 2: [SEARCH, "<answer>13</answer>"]}

    def generate(requests: list[Request]) -> list[Output]:
        asked.extend(requests)
        said = [scripts[each.row].pop(0) for each in requests]
        return [Output([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], truncated=False) for text in said]

    template = ChatTemplate(tokenizer, key="custom_chat_template")
    player = EpisodePlayer(settings(corpus, **SMALL), tokenizer, template, 1024, 4096)
    problems = [problem(0, "Table"), problem(1, "Chart"), problem(2, "Table")]
    prompt = tuple(template.ids(problems[0].messages))
    requests = [Request(number, 0, prompt, 0.0, 1.0, -1, 99, seed=number) for number in range(3)]
    samples = player.play(requests, problems, generate)
    assert [len(each.images) for each in asked] == [0, 0, 0, 1, 1, 2]
    for each in asked:
        assert each.prompt_ids.count(pad) == sum(image.width * image.height // 784 for image in each.images)
    assert [sample.correct for sample in samples] == [1, 0, 0]  # the second searched nothing
    assert samples[0].turns is not None and samples[0].turns[0]["feedback"] == "<image>"
    assert samples[0].turns[0]["images"] == [{"page_id": "deck_2", "rect": [0, 0, 300, 200]}]
    entry = episode_entry(samples, problems, ["content_type"], HOW)
    assert {kind: part["accuracy"]["mean"] for kind, part in entry["splits"]["content_type"].items()} == {
        "chart": 0.0,
        "table": 0.5,
    }
    assert entry["means"]["n_images"] == 1.0 and entry["means"]["search_errors"] == 0.0
    with pytest.raises(ValueError, match=r"environment.name=vrag answers with images, and engine=vllm .* set engine=hf"):
        EpisodePlayer(settings(corpus, **SMALL), tokenizer, template, 1024, 4096, engine="vllm")


def test_the_engine_generates_from_images(corpus: Path, processor: Any, seeing_folder: Path) -> None:
    """Greedy, beside `generate` of transformers with the same pixels."""
    from PIL import Image

    image = Image.linear_gradient("L").convert("RGB").resize((112, 84))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    given = processor(text=[processor.apply_chat_template(chat, add_generation_prompt=True)], images=[image], return_tensors="pt")
    override = {"attn_implementation": "sdpa"}
    engine = start_engine(seeing_folder, EngineSettings("hf", "float32", 256, 4, override, {}))
    ids = tuple(given["input_ids"][0].tolist())
    (output,) = engine.generate([Request(0, 0, ids, 0.0, 1.0, -1, 12, seed=0, images=(image,))])
    model = AutoModelForImageTextToText.from_pretrained(seeing_folder).eval()
    with torch.inference_mode():
        expected = model.generate(**given, max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    assert output.token_ids == expected
    engine.close()
