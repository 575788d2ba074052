"""What a model that sees is given: ids, pixels and positions as verl's agent loops make them, and decoding from them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker, DictConfigWrap
from verl.utils import hf_processor
from verl.utils.dataset.rl_dataset import RLHFDataset

from tests.tiny_vision import picture, prompt
from unify_posttrain.backend.seams import rope_inputs
from unify_posttrain.config import compose_config
from unify_posttrain.experience.pictures import picture_references
from unify_posttrain.rollout import lanes
from unify_posttrain.rollout.agent_loop import SeededSingleTurnAgentLoop
from unify_posttrain.rollout.decoding import decode_batch
from unify_posttrain.rollout.pictures import GRIDS, VISION_TOKENS, PictureReader, banned_bias
from unify_posttrain.rollout.sampling import SamplingParams, SeededSampler

PROMPTS = {
    "text": prompt("What?"),
    "picture": prompt("How many?", picture(84, 56)),
    "two": prompt("Same?", picture(56, 56, 1), picture(112, 84, 2)),
    "resized": prompt("Small?", picture(30, 41, 3)),
}


@pytest.fixture(scope="module")
def processor(seeing_folder):
    return hf_processor(str(seeing_folder), use_fast=True)


@pytest.fixture(scope="module")
def reader(processor) -> PictureReader:
    return PictureReader(processor)


@pytest.fixture(scope="module")
def config(seeing_folder):
    return compose_config(["task=shapes", "model=tiny_qwen2_5_vl", f"actor_rollout_ref.model.path={seeing_folder}"])


@pytest.fixture(scope="module")
def model(seeing_folder):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(seeing_folder).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)  # far from uniform, so that a wrong position or picture shows
    return model


@pytest.mark.parametrize("name", PROMPTS)
def test_ids_pixels_and_positions_are_those_of_verls_agent_loops(config, processor, reader, name: str) -> None:
    """verl's own methods, of the loop and on a stand-in for the worker that holds what they read."""
    messages, seen = PROMPTS[name], reader.read(PROMPTS[name])
    pictures = [part["image"] for part in messages[0]["content"] if part["type"] == "image"] if name != "text" else None
    from qwen_vl_utils import process_vision_info

    shown, _ = process_vision_info(messages, image_patch_size=14)

    async def verls() -> list[int]:
        loop = SeededSingleTurnAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=None,
            tokenizer=processor.tokenizer,
            processor=processor,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
        )
        return await loop.apply_chat_template(messages, images=shown)

    assert list(seen.ids) == asyncio.run(verls())
    width = len(seen.ids) + 5
    ids = torch.full((1, width), processor.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    ids[0, 3:-2], mask[0, 3:-2] = torch.tensor(seen.ids), 1
    worker = SimpleNamespace(processor=processor, tokenizer=processor.tokenizer)
    output = SimpleNamespace(multi_modal_data={} if pictures is None else {"images": shown}, mm_processor_kwargs={})
    inputs = AgentLoopWorker._compute_multi_modal_inputs(worker, output, ids)
    expected = AgentLoopWorker._compute_position_ids(worker, ids, mask, inputs)  # takes out what positions alone need
    assert set(inputs) == set(seen.inputs) and all(torch.equal(inputs[name], seen.inputs[name]) for name in inputs)
    assert torch.equal(reader.positions(ids, mask, [seen.inputs]), expected)


def test_position_vectors(processor, reader) -> None:
    """Vectors M of the specification: a a a VS I*4 VE a a with a grid of (1, 4, 4), and text behind a left pad."""
    ids_of = processor.tokenizer.convert_tokens_to_ids
    start, pad, end, a = ids_of("<|vision_start|>"), ids_of("<|image_pad|>"), ids_of("<|vision_end|>"), 5
    ids = torch.tensor([[a, a, a, start, pad, pad, pad, pad, end, a, a]])
    found = reader.positions(ids, torch.ones_like(ids), [{GRIDS: torch.tensor([[1, 4, 4]])}])[0].tolist()
    assert found[0] == list(range(11))
    assert found[1] == [0, 1, 2, 3, 4, 4, 4, 4, 6, 7, 8]
    assert found[2] == [0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8]
    assert found[3] == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8]
    text = reader.positions(torch.tensor([[0, a, a, a]]), torch.tensor([[0, 1, 1, 1]]), [{}])[0].tolist()
    assert [row[1:] for row in text] == [[0, 1, 2]] * 4  # nobody reads those of padding


def test_positions_of_a_mixed_batch_are_those_of_its_rows(reader) -> None:
    rows = [reader.read(each) for each in PROMPTS.values()]
    width = max(len(row.ids) for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, width - len(row.ids) :], mask[place, width - len(row.ids) :] = torch.tensor(row.ids), 1
    together = reader.positions(ids, mask, [row.inputs for row in rows])
    for place, row in enumerate(rows):
        assert torch.equal(together[place], reader.positions(ids[place : place + 1], mask[place : place + 1], [row.inputs])[0])


@pytest.mark.parametrize("name", PROMPTS)
def test_pads_are_as_many_as_features(processor, reader, model, name: str) -> None:
    seen = reader.read(PROMPTS[name])
    pads = seen.ids.count(processor.image_token_id)
    features = 0
    if seen.inputs:
        found = model.model.visual(seen.inputs["pixel_values"], seen.inputs[GRIDS])
        features = len(getattr(found, "pooler_output", found))  # newer transformers give more than features
    assert pads == features == (sum(seen.inputs["images_seqlens"]).item() // 4 if seen.inputs else 0)


@pytest.mark.parametrize("name", PROMPTS)
def test_lengths_are_those_of_what_is_read(processor, reader, name: str) -> None:
    seen = reader.read(PROMPTS[name])
    pictures = [count // 4 for count in seen.inputs["images_seqlens"].tolist()] if seen.inputs else []
    assert reader.lengths(PROMPTS[name]) == (len(seen.ids), pictures)


def test_references_are_json_and_give_the_same_pixels(reader, tmp_path) -> None:
    image = picture(84, 56)
    image.save(tmp_path / "a.png")
    for messages in (prompt("How many?", image), prompt("How many?", str(tmp_path / "a.png"))):
        (shown,) = picture_references(messages)
        assert set(shown) == {"image"} and isinstance(shown["image"], str)
        assert torch.equal(reader.inputs([shown])["pixel_values"], reader.read(messages).inputs["pixel_values"])


def test_a_prompt_is_processed_once_while_it_is_remembered(processor) -> None:
    calls = []
    counting = SimpleNamespace(
        apply_chat_template=processor.apply_chat_template, image_processor=processor.image_processor, tokenizer=processor.tokenizer
    )

    class Counting(SimpleNamespace):
        def __call__(self, **given):
            calls.append(given["text"])
            return processor(**given)

    reader = PictureReader(Counting(**vars(counting)), keep=1)
    first = reader.read(PROMPTS["picture"])
    assert reader.read(PROMPTS["picture"]) is first and len(calls) == 1
    other = prompt("How many?", picture(84, 56, 9))  # the same text and size, another picture
    assert not torch.equal(reader.read(other).inputs["pixel_values"], first.inputs["pixel_values"]) and len(calls) == 2
    reader.read(PROMPTS["picture"])
    assert len(calls) == 3 and len(reader._known) == 1


# --- decoding ----------------------------------------------------------------------------------------------------------


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, top_p=1.0, top_k=-1, max_tokens=tokens, seed=None)


def test_greedy_decoding_is_transformers_generate_in_a_mixed_batch(processor, reader, model) -> None:
    """Rows of text and pictures together, some prompts twice; two that differ in their picture alone."""
    messages = [*PROMPTS.values(), PROMPTS["picture"], prompt("How many?", picture(84, 56, 7))]
    seen = [reader.read(each) for each in messages]
    found = decode_batch(model, [each.ids for each in seen], [greedy(9)] * len(seen), [-1], 0, [each.inputs for each in seen])
    for each, decoded in zip(seen, found, strict=True):
        ids = torch.tensor([each.ids])
        pixels = {name: each.inputs[name] for name in ("pixel_values", GRIDS) if each.inputs} | rope_inputs(ids, processor)
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, eos_token_id=None, **pixels
        )
        assert decoded.token_ids == whole[0, ids.shape[1] :].tolist()
        model.model.rope_deltas = None
    assert found[1].token_ids == found[4].token_ids != found[5].token_ids


def test_several_processes_see_the_same(reader, model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose prompts differ in their picture alone, dealt to two processes."""
    monkeypatch.setattr(lanes, "ROWS", 2)
    messages = [prompt("How many?", picture(84, 56, each)) for each in (7, 8)] + [PROMPTS["two"], PROMPTS["text"]]
    seen = [reader.read(each) for each in messages]
    batch = [each.ids for each in seen], [greedy(9)] * len(seen), [-1], 0, [each.inputs for each in seen]
    two = lanes.Lanes(model, 2)
    try:
        found = two.decode_batch(*batch)
    finally:
        two.close()
    expected = decode_batch(model, *batch)
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    assert found[0].token_ids != found[1].token_ids


def test_log_probs_are_those_of_the_training_forward(reader, model) -> None:
    """The distribution of every drawn token, against one pass over prompt and response with positions of four rows."""
    seen = [reader.read(PROMPTS[name]) for name in ("two", "text")]
    params = [SamplingParams(1.0, 1.0, -1, 6, seed) for seed in (1, 2)]
    found = decode_batch(model, [each.ids for each in seen], params, [-1], 0, [each.inputs for each in seen])
    for each, decoded in zip(seen, found, strict=True):
        ids = torch.tensor([[*each.ids, *decoded.token_ids]])
        pixels = {name: each.inputs[name] for name in ("pixel_values", GRIDS) if each.inputs}
        positions = reader.positions(ids, torch.ones_like(ids), [each.inputs]).transpose(0, 1)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, **pixels).logits
        expected = logits[0, len(each.ids) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(decoded.token_ids).unsqueeze(-1))
        assert torch.allclose(decoded.log_probs, expected.squeeze(-1), atol=1e-4)


# --- tokens of pictures are never sampled --------------------------------------------------------------------------------


def test_every_token_of_pictures_is_banned(processor) -> None:
    banned = banned_bias(processor.tokenizer)
    assert sorted(processor.tokenizer.convert_ids_to_tokens(list(banned))) == sorted(VISION_TOKENS)
    assert processor.tokenizer.eos_token_id not in banned


def test_banned_tokens_are_never_drawn_and_the_others_keep_their_proportions() -> None:
    bans = [(1, 3), (), (1, 3)]
    requests = [{"temperature": t, "logit_bias": dict.fromkeys(ban, -100.0)} for t, ban in zip((1.0, 1.0, 0.0), bans, strict=True)]
    params = [SamplingParams.from_request({**request, "seed": 0}, 400) for request in requests]
    assert [each.banned for each in params] == bans
    logits = torch.tensor([[0.0, 5.0, 1.0, 9.0]] * 3)
    sampler, rows = SeededSampler(params, torch.device("cpu")), torch.arange(3)
    drawn = [sampler.draw(logits, rows, step) for step in range(400)]
    tokens = torch.stack([each for each, _ in drawn])
    assert set(tokens[:, 0].tolist()) == {0, 2} and set(tokens[:, 2].tolist()) == {2} and 3 in tokens[:, 1]
    expected = torch.tensor([0.0, 1.0]).log_softmax(-1)
    for token, log_probs in drawn:
        assert torch.allclose(log_probs[0], expected[{0: 0, 2: 1}[int(token[0])]])


def test_a_bias_that_is_no_ban_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a logit_bias of -100 only"):
        SamplingParams.from_request({"logit_bias": {4: -1.0}}, 5)
