"""Episodes that show images, through the agent loop: pads and features, the same rows again from demonstrations, and a server
that is killed in the middle. The engine is made up: it says what it is told to."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker, DictConfigWrap
from verl.utils import hf_processor
from verl.utils.dataset.rl_dataset import RLHFDataset

from tests.rollout.test_environment_loop import Engine
from tests.tasks.vrag.kit import make_corpus, row
from tests.tasks.vrag.test_http import real_server
from tests.tiny_vision import picture
from unify_posttrain.algorithms import FusionConfig, build_algorithm
from unify_posttrain.config import compose_config
from unify_posttrain.experience.demonstrations import Reading
from unify_posttrain.experience.pictures import reference
from unify_posttrain.rewards.calling import OUTCOME
from unify_posttrain.rollout.environment_loop import SHOWN, EnvironmentAgentLoop
from unify_posttrain.rollout.pictures import GRIDS, PIXELS, PictureReader, kept_pixels
from unify_posttrain.startup.episode_checks import check_ready
from unify_posttrain.startup.reader import make_reader
from unify_posttrain.startup.tokenizers import load_processor
from unify_posttrain.tasks.episodes import episode_node
from unify_posttrain.tasks.vrag.protocol import NO_SEARCH
from unify_posttrain.trainer.packing import Packing

SEARCH, CROP = "<think>a</think>\n<search>revenue forecast</search>", "<bbox>[10, 10, 90, 70]</bbox>"
ANSWER, AGAIN, NOTHING = "<answer>12</answer>", "<search>headquarters photo</search>", "Let me see."
PROMPT, RESPONSE = 64, 520


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("shown") / "corpus", (300, 200))


@pytest.fixture(scope="module")
def processor(seeing_folder: Path) -> Any:
    return hf_processor(str(seeing_folder), use_fast=True)


@pytest.fixture(scope="module")
def config(corpus: Path, seeing_folder: Path) -> Any:
    return compose_config(
        [
            "task=vrag_small", "model=tiny_qwen2_5_vl_pages", "algorithm=hpt", f"actor_rollout_ref.model.path={seeing_folder}",
            f"environment.retriever.corpus={corpus}", "environment.retriever.pause_s=0.01", "environment.retriever.retries=1",
            f"data.max_prompt_length={PROMPT}", f"data.max_response_length={RESPONSE}", "environment.min_turn_tokens=4",
        ]
    )  # fmt: skip


def loop_of(config: Any, processor: Any, engine: Engine) -> EnvironmentAgentLoop:
    """Episodes of a model that sees, whose answers `engine` gives."""
    return EnvironmentAgentLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=engine,
        tokenizer=processor.tokenizer,
        processor=processor,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(config.data),
    )


def play(config: Any, processor: Any, engine: Engine) -> Any:
    async def run() -> Any:
        return await loop_of(config, processor, engine).run(
            {"temperature": 1.0, "logprobs": True}, **row(), raw_prompt=[{"role": "user", "content": "How much?"}]
        )

    return asyncio.run(run())


def said(output: Any) -> dict[str, Any]:
    found: dict[str, Any] = output.extra_fields["reward_extra_info"][OUTCOME]["fields"]
    return found


def verls_inputs(processor: Any, output: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """What verl makes of a rollout's images, and positions (1, 4, L) of its tokens."""
    ids = torch.tensor([[*output.prompt_ids, *output.response_ids]])
    worker = SimpleNamespace(processor=processor, tokenizer=processor.tokenizer, _get_mm_processor_kwargs=lambda _: {})
    inputs = AgentLoopWorker._compute_multi_modal_inputs(worker, output, ids)
    positions = AgentLoopWorker._compute_position_ids(worker, ids, torch.ones_like(ids), inputs)
    return inputs, positions  # in this order: positions take out what they alone need


def target_of(processor: Any, output: Any) -> tuple[list[dict[str, str]], list[str]]:
    """A recorded rollout as the columns `target` and `target_images` of a row: texts of turns, and where images are from."""
    ids, mask, messages = output.response_ids, output.response_mask, []
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
    for begin, end in itertools.pairwise(edges):
        text = processor.tokenizer.decode(ids[begin:end], skip_special_tokens=True)
        if mask[begin]:
            messages.append({"role": "assistant", "content": text})
        else:
            shows = processor.image_token_id in ids[begin:end]
            told = text.removeprefix("\nuser\n").removesuffix("\nassistant\n")
            messages.append({"role": "user", "content": "<image>" if shows else told})
    return messages, [json.dumps(origin) for origin in output.extra_fields[SHOWN]]


@pytest.mark.parametrize(
    ("answers", "images", "stop"),
    [
        ((SEARCH, CROP, ANSWER), 2, "solved"),
        ((SEARCH, AGAIN, NOTHING), 2, "turns"),
        ((NOTHING, SEARCH, ANSWER), 1, "solved"),
        ((CROP, NOTHING, ANSWER), 0, "turns"),
    ],
)
def test_pads_are_features_and_a_replayed_rollout_is_the_same_row(
    config: Any, processor: Any, answers: tuple[str, ...], images: int, stop: str
) -> None:
    output = play(config, processor, engine := Engine(*answers, tokenizer=processor.tokenizer))
    assert said(output)["stop"] == stop and said(output)["n_images"] == images
    (inputs, positions), pad = verls_inputs(processor, output), processor.image_token_id
    pads = output.response_ids.count(pad)
    assert pads == sum(int(grid.prod()) // 4 for grid in inputs.get(GRIDS, ())) == said(output)["image_tokens"]
    sampled = [token for token, kept in zip(output.response_ids, output.response_mask, strict=True) if kept]
    assert pad not in sampled and sampled.count(processor.tokenizer.eos_token_id) == len(answers)
    for asked in engine.asked:  # every request has the images of its pads, in their order
        shown = asked["shown"]["image_data"] or []
        assert sum(image.width * image.height // 784 for image in shown) == asked["prompt_ids"].count(pad)
        assert all(a is b for a, b in zip(shown, output.multi_modal_data.get("images", ()), strict=False))
    target, named = target_of(processor, output)
    pictures = PictureReader(processor)
    reader = make_reader(processor.tokenizer, fusion(config), {}, pictures, episode_node(config))
    data = {"target": target, "target_images": named}
    reading = reader.read(0, [{"role": "user", "content": "How much?"}], data, step=1).demonstration
    assert reading is not None and list(reading.prompt_ids) == output.prompt_ids
    assert list(reading.response_ids) == output.response_ids and list(reading.mask) == output.response_mask
    packing = Packing(PROMPT, RESPONSE, processor.tokenizer.pad_token_id, pictures)
    tensors, columns = packing.rows([reading])
    assert set(columns[0]) == set(inputs) and all(torch.equal(columns[0][name], inputs[name]) for name in inputs)
    attended = tensors["attention_mask"].bool()
    assert torch.equal(tensors["position_ids"][0][:, attended[0]], positions[0])


def fusion(config: Any) -> FusionConfig:
    return build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True)).fusion


def test_an_overlong_target_loses_whole_turns_and_images(config: Any, processor: Any) -> None:
    output = play(config, processor, Engine(SEARCH, CROP, ANSWER, tokenizer=processor.tokenizer))
    target, named = target_of(processor, output)
    pictures, node = PictureReader(processor), episode_node(config)
    data, asked = {"target": target, "target_images": named}, [{"role": "user", "content": "How much?"}]
    whole = make_reader(processor.tokenizer, fusion(config), {}, pictures, node)
    for room, answers, images in ((len(output.response_ids), 3, 2), (len(output.response_ids) - 1, 2, 1), (60, 1, 0)):
        cut = replace(whole, max_length=room, overlong="truncate").read(0, asked, data, step=1)
        assert cut.demonstration is not None and cut.overlong is (answers < 3)
        assert (len(cut.demonstration.answers), len(cut.demonstration.pictures)) == (answers, images)
        assert cut.demonstration.mask[-1] == 1 and cut.demonstration.response_ids[-1] == processor.tokenizer.eos_token_id
    assert replace(whole, max_length=9, overlong="truncate").read(0, asked, data, step=1) == Reading(None, overlong=True)
    assert replace(whole, max_length=60).read(0, asked, data, step=1) == Reading(None, overlong=True)
    with pytest.raises(ValueError, match=r"training row 7: target has 2 marks <image> for 1 target_images"):
        whole.read(7, asked, {**data, "target_images": named[:1]}, step=1)
    with pytest.raises(ValueError, match=r"training row 7: target has 2 marks <image> for 0 target_images"):
        whole.read(7, asked, {"target": target}, step=1)


def test_a_server_that_is_killed_in_the_middle_costs_its_turn(config: Any, processor: Any, corpus: Path) -> None:
    """Over real HTTP: the model is told that the search does not work, the episode goes on, and the field says so."""
    config = config.copy()
    with real_server(corpus) as (url, process):
        OmegaConf.update(config, "environment.retriever.kind", "http")
        OmegaConf.update(config, "environment.retriever.url", url)
        check_ready(config)

        class Killer(Engine):
            async def generate(self, request_id: str, **kwargs: Any) -> Any:
                if len(self.asked) == 1:
                    process.kill()
                    process.wait()
                return await super().generate(request_id, **kwargs)

        output = play(config, processor, Killer(SEARCH, AGAIN, ANSWER, tokenizer=processor.tokenizer))
    found = said(output)
    assert (found["n_search"], found["search_errors"], found["n_images"], found["acc"]) == (2, 1, 1, 1)
    assert NO_SEARCH in processor.tokenizer.decode(output.response_ids)
    with pytest.raises(
        ValueError,
        match=rf"environment.retriever: a search fails \(.*kind=http, start the server of environment.retriever.url={url}",
    ):
        check_ready(config)


def test_a_processor_that_would_change_images_and_a_model_that_sees_none(config: Any, processor: Any, seeing_folder: Path) -> None:
    assert kept_pixels(processor) == (4 * 784, 256 * 784)
    assert load_processor(config, str(seeing_folder)) is not None
    large = config.copy()
    OmegaConf.update(large, "environment.max_pixels", 257 * 784)
    with pytest.raises(ValueError, match=r"keeps images within 3136 to 200704 pixels .* set environment.min_pixels"):
        load_processor(large, str(seeing_folder))


def test_references_survive_the_way_to_the_model(processor: Any) -> None:
    """Images within the bounds keep their pixels as PNG in JSON, whatever their size."""
    least, most = kept_pixels(processor)
    for width, height in ((56, 56), (28, 112), (448, 448), (3136, 28)):
        assert least <= width * height <= most
        image = picture(width, height)
        stored = json.loads(json.dumps(reference(image)))
        ours, direct = PictureReader(processor).inputs([stored]), processor.image_processor(images=[image], return_tensors="pt")
        assert torch.equal(ours[PIXELS], direct[PIXELS]) and int(ours[GRIDS].prod()) == width * height // 196
