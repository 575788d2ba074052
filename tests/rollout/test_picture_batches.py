"""Single turns with pictures on the direct way against verl's agent loops, and who goes which way."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from transformers import AutoModelForImageTextToText
from verl import DataProto
from verl.utils import hf_tokenizer
from verl.utils.dataset.rl_dataset import RLHFDataset

from tests.tiny_vision import picture, prompt
from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.rollout.agent_loop import PREFIX_COLUMN, PREFIX_TRAINED_COLUMN, SEED_COLUMN
from unify_posttrain.rollout.hf_server import HFServer
from unify_posttrain.rollout.manager import RolloutManager
from unify_posttrain.rollout.picture_batches import SeeingRows
from unify_posttrain.rollout.pictures import PictureReader, Seen
from unify_posttrain.rollout.rows import Requests

from .test_manager import Judge, Stopped, at_a_worker, by_agent_loops, manager_of

PROMPT, RESPONSE, GROUP = 48, 12, 3
ROWS = 5 * GROUP


@pytest.fixture(scope="module")
def config(seeing_folder: Any) -> Any:
    return compose_config(
        [
            "task=shapes", "model=tiny_qwen2_5_vl", "algorithm=grpo", f"actor_rollout_ref.model.path={seeing_folder}",
            f"data.max_prompt_length={PROMPT}", f"data.max_response_length={RESPONSE}",
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(seeing_folder: Any) -> HFServer:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(seeing_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)  # far from uniform, so that a wrong position or picture shows
    server = HFServer(
        model_path=str(seeing_folder), pad_id=hf_tokenizer(str(seeing_folder)).pad_token_id, eos_ids=[*range(40, 60)],
        response_length=RESPONSE, max_context=PROMPT + RESPONSE, max_batch=64, gather_seconds=0.01, dtype="float32",
        override_config={"attn_implementation": "sdpa"},
    )  # fmt: skip
    server.load_weights(dict(model.named_parameters()))
    return server


def messages_of() -> list[list[dict[str, Any]]]:
    """Text, a picture, another one under the same text, two pictures, and one that is made larger."""
    return [
        prompt("What?"),
        prompt("How many?", picture(84, 56)),
        prompt("How many?", picture(84, 56, 9)),
        prompt("Same?", picture(56, 56, 1), picture(84, 56, 2)),
        prompt("Small?", picture(30, 41, 3)),
    ]


def requests(validate: bool = False, **columns: Any) -> DataProto:
    messages = messages_of()
    given = {
        "raw_prompt": object_column([messages[row // GROUP] for row in range(ROWS)]),
        SEED_COLUMN: np.arange(ROWS) * 7,
        "row_id": np.arange(ROWS) // GROUP,
        **columns,
    }
    batch = DataProto.from_dict(tensors={"dummy": torch.zeros(ROWS, 1)}, non_tensors=given)
    batch.meta_info = {"global_steps": 3, **({"validate": True} if validate else {})}
    return batch


def prefixes() -> dict[str, Any]:
    return {
        PREFIX_COLUMN: object_column([list(range(70, 70 + row % 3)) for row in range(ROWS)]),
        PREFIX_TRAINED_COLUMN: np.arange(ROWS) % 2 == 0,
    }


@pytest.mark.parametrize("case", ["train", "validate", "prefixes"])
def test_rows_are_those_of_the_agent_loops(config: Any, server: HFServer, case: str) -> None:
    """Tokens and their log-probabilities, masks, positions of four rows, what the model is shown, and what is scored: to the last
    bit."""
    validate, columns = case == "validate", prefixes() if case == "prefixes" else {}
    judges = [Judge(), Judge()]
    manager = manager_of(config, server, judges=judges)
    ours = manager.generate_sequences(requests(validate, **columns))
    theirs = by_agent_loops(config, server, [Judge()], requests(validate, **columns))
    assert manager.agent_loop_workers == [], "nothing of the other way was started"
    arrived = at_a_worker(ours).batch
    assert set(arrived.keys()) == set(theirs.batch.keys())
    for name, value in theirs.batch.items():
        assert arrived[name].dtype == value.dtype and torch.equal(arrived[name], value), name
    assert theirs.batch["position_ids"].shape == (ROWS, 4, PROMPT + RESPONSE)
    assert ours.batch["response_mask"].sum(dim=-1).unique().numel() > 1
    assert set(ours.non_tensor_batch) == set(theirs.non_tensor_batch)
    shown = ours.non_tensor_batch.pop("multi_modal_inputs"), theirs.non_tensor_batch.pop("multi_modal_inputs")
    for one, other in zip(*shown, strict=True):
        assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in other)
    assert [len(each) for each in shown[0]] == [0] * GROUP + [3] * 4 * GROUP
    for name, column in theirs.non_tensor_batch.items():
        assert ours.non_tensor_batch[name].tolist() == column.tolist(), name
    assert set(ours.meta_info) == set(theirs.meta_info)
    calls = [size for judge in judges for size in judge.batches]
    assert sum(calls) == ROWS and len(calls) < ROWS


def test_a_prompt_is_processed_once_and_travels_once(config: Any, server: HFServer, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, asked = manager_of(config, server, judges=[Judge()]), []

    async def generate_batch(given: Requests) -> Any:
        asked.append(given)
        async for part in HFServer.generate_batch(server, given):
            yield part

    manager.server_handles[0].actor = type("Recording", (), {"generate_batch": staticmethod(generate_batch)})
    read, reads = [], PictureReader.read

    def counting(self: PictureReader, messages: Any, where: str = "") -> Seen:
        read.append(messages)
        return reads(self, messages, where)

    monkeypatch.setattr(PictureReader, "read", counting)
    vars(server).pop("processor", None)  # made at the first request with a picture
    found = manager.generate_sequences(requests())
    assert len(read) == 5 and "processor" not in vars(server), "the engine has nothing to process"
    (given,) = asked
    assert len({id(each) for each in given.pictures}) == len({id(each) for each in given.prompts}) == 5  # after pickling
    assert len(given.part(2, 7).pictures) == 5 and given.part(2, 7).pictures[1] is given.pictures[3]
    pixels = {each["pixel_values"].data_ptr() for each in found.non_tensor_batch["multi_modal_inputs"] if each}
    assert len(pixels) == 4, "the rows of a prompt hold one tensor"
    once, all_rows = (len(pickle.dumps(found.non_tensor_batch["multi_modal_inputs"][rows])) for rows in (slice(3, 4), slice(3, 6)))
    assert all_rows < 1.5 * once


def test_positions_go_on_from_pictures_at_the_end_of_a_prompt(config: Any, server: HFServer) -> None:
    """The next token stands behind the largest of the three positions, which is not the last token's."""
    sight = manager_of(config, server, judges=None).sight
    assert sight is not None
    (seen,) = sight.read([prompt("How many?", picture(112, 56))])
    cut = seen.ids[: seen.ids.index(sight.reader.processor.image_token_id) + 8]  # 4 by 2 tokens, and nothing behind them
    rows = SeeingRows(sight, [Seen(seen.text, cut, seen.inputs)], [[70, 71]], [True], PROMPT, RESPONSE, 0)
    ids, mask = rows.input_ids.long(), rows.attention_mask.long()
    assert torch.equal(rows.positions(torch.tensor([0])), sight.reader.positions(ids, mask, [seen.inputs]))


class Opening(RLHFDataset):
    """A dataset that opens pictures in a way of its own."""

    @classmethod
    async def process_vision_info(cls, messages: Any, **_: Any) -> Any:
        return None, None


@pytest.mark.parametrize("why", ["engine", "dataset", "video", "direct"])
def test_what_only_agent_loops_bring_goes_by_them(config: Any, server: HFServer, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(self: Any) -> None:
        raise Stopped

    monkeypatch.setattr(RolloutManager, "_start_agent_loops", start)
    config, batch = config.copy(), requests()
    with open_dict(config):
        if why == "engine":
            config.actor_rollout_ref.rollout.name = "vllm"
        if why == "dataset":
            config.data.custom_cls = {"path": f"pkg://{__name__}", "name": "Opening"}
    if why == "video":
        batch.non_tensor_batch["raw_prompt"][3] = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
    manager = manager_of(config, server, judges=[Judge()])
    if why == "direct":
        assert len(manager.generate_sequences(batch)) == ROWS
    else:
        with pytest.raises(Stopped):
            manager.generate_sequences(batch)


def test_single_requests_and_batches_are_decoded_alike(config: Any, server: HFServer) -> None:
    """Requests of agent loops bring pictures, batches what a processor made of them."""
    sight = manager_of(config, server, judges=None).sight
    assert sight is not None
    images = picture(84, 56), picture(84, 56, 9)
    seen = sight.read([prompt("How many?", image) for image in images])
    sampling = {"temperature": 1.0, "logprobs": True, **sight.sampling}
    given = Requests([np.array(each.ids) for each in seen], [RESPONSE] * 2, [4, 5], sampling, 2, [each.inputs for each in seen])

    async def both() -> tuple[Any, Any]:
        singles = [
            server.generate(str(row), list(each.ids), {**sampling, "seed": 4 + row}, image_data=[images[row]])
            for row, each in enumerate(seen)
        ]
        return await asyncio.gather(*singles), [part async for part in server.generate_batch(given)]

    singles, (part,) = asyncio.run(both())
    assert [token for row in part.rows for token in singles[row].token_ids] == part.token_ids.tolist()
    assert np.array_equal(np.concatenate([singles[row].log_probs for row in part.rows]).astype(np.float32), part.log_probs)
