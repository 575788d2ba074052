"""The agent loop of a row: its seed, the tokens that it begins with, and how many the policy may add. The engine is made up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout.replica import TokenOutput

from tests.chat_models import chat_tokenizer
from unify_posttrain.rollout.agent_loop import (
    NEW_TOKENS_COLUMN,
    PREFIX_COLUMN,
    PREFIX_TRAINED_COLUMN,
    SEED_COLUMN,
    SeededSingleTurnAgentLoop,
)

PROMPT, RESPONSE, ENGINE = [1, 2, 3], 8, 20  # `ENGINE` tokens are what an engine makes that is not told when to stop


class Engine:
    """Generates 100, 101, ... up to the limit that it is given; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        self.asked.append({"prompt_ids": prompt_ids, **sampling_params})
        tokens = list(range(100, 100 + sampling_params.get("max_tokens", ENGINE)))
        return TokenOutput(token_ids=tokens, log_probs=[-token / 100 for token in tokens])


class Loop(SeededSingleTurnAgentLoop):
    """Without tokenizer and processor."""

    def __init__(self, engine: Engine) -> None:
        self.server_manager, self.prompt_length, self.response_length = engine, len(PROMPT), RESPONSE
        self.tokenizer, self.processor = None, None

    async def process_vision_info(self, messages: list[dict]) -> dict:
        return {}

    async def apply_chat_template(self, messages: list[dict], **_: Any) -> list[int]:
        return list(PROMPT)


def run(params: dict[str, Any] | None = None, **columns: Any) -> tuple[SimpleNamespace, dict[str, Any]]:
    """The output of a row, and what the engine was asked."""
    engine, given = Engine(), {"temperature": 1.0} if params is None else params
    before = dict(given)
    output = asyncio.run(Loop(engine).run(given, raw_prompt=[{"role": "user", "content": "x"}], **columns))
    assert given == before, "verl shares one dictionary between all loops of a worker"
    (asked,) = engine.asked
    return output, asked


def test_a_model_that_sees_never_samples_tokens_of_pictures() -> None:
    engine, given = Engine(), {"temperature": 1.0}
    loop = Loop(engine)
    added = {"<|image_pad|>": 7, "<|im_end|>": 8, "<|video_pad|>": 9}
    loop.tokenizer, loop.processor = SimpleNamespace(get_added_vocab=lambda: added), object()
    for columns in ({}, {PREFIX_COLUMN: [4], PREFIX_TRAINED_COLUMN: True}):
        asyncio.run(loop.run(given, raw_prompt=[{"role": "user", "content": "x"}], **columns))
    assert [asked["logit_bias"] for asked in engine.asked] == [{7: -100.0, 9: -100.0}] * 2 and given == {"temperature": 1.0}


def test_a_template_that_wants_alternating_roles_can_be_trained() -> None:
    """verl renders two messages of the user in a row for every row, to find a system prompt that only loops with tools need."""
    tokenizer = chat_tokenizer("gemma")
    rollout = SimpleNamespace(prompt_length=64, response_length=8)

    def build(kind: type) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(agent_loop, "_get_rollout_and_model_config", lambda _: (rollout, None))
            patch.setattr(agent_loop, "get_event_loop", asyncio.new_event_loop)
            return kind(
                trainer_config=SimpleNamespace(config=None),
                server_manager=Engine(),
                tokenizer=tokenizer,
                processor=None,
                dataset_cls=None,
                data_config=SimpleNamespace(config={}),
            )

    with pytest.raises(TemplateError, match="roles must alternate"):
        build(SingleTurnAgentLoop)
    loop = build(SeededSingleTurnAgentLoop)
    messages = [{"role": "user", "content": "x"}]
    ids = loop.loop.run_until_complete(loop.apply_chat_template(messages))
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True) and loop.tokenizer is tokenizer


def prefix(*ids: int, trained: bool = False) -> dict[str, Any]:
    return {PREFIX_COLUMN: list(ids), PREFIX_TRAINED_COLUMN: trained}


def test_a_plain_row_is_verls() -> None:
    output, asked = run()
    assert asked == {"prompt_ids": PROMPT, "temperature": 1.0}, "no limit of ours: the engine has its own"
    assert output.response_ids == list(range(100, 100 + RESPONSE)) and output.response_mask == [1] * RESPONSE
    assert run(**{SEED_COLUMN: 7})[1]["seed"] == 7


@pytest.mark.parametrize("trained", [False, True])
def test_a_prefix_stands_before_what_is_sampled(trained: bool) -> None:
    output, asked = run(**prefix(7, 8, 9, trained=trained))
    assert asked["prompt_ids"] == [*PROMPT, 7, 8, 9] and asked["max_tokens"] == RESPONSE - 3
    assert output.prompt_ids == PROMPT
    assert output.response_ids == [7, 8, 9, 100, 101, 102, 103, 104]
    assert output.response_mask == [int(trained)] * 3 + [1] * 5
    assert output.response_logprobs == pytest.approx([0, 0, 0, -1.0, -1.01, -1.02, -1.03, -1.04])


@pytest.mark.parametrize(
    ("limit", "given", "new"),
    [
        (4, (7, 8), 4),  # the rule's limit is what binds
        (6, (7, 8), 6),  # ... and just fits
        (7, (7, 8), 6),  # ... the response has no room for more
        (4, (), 4),  # a row without prefix (UFT after its hints) is limited as well
        (RESPONSE, (), RESPONSE),
        (RESPONSE + 5, (), RESPONSE),
    ],
)
def test_no_more_is_sampled_than_the_rule_allows(limit: int, given: tuple[int, ...], new: int) -> None:
    output, asked = run(**prefix(*given), **{NEW_TOKENS_COLUMN: limit})
    assert output.response_ids == [*given, *range(100, 100 + new)]
    assert output.response_mask == [0] * len(given) + [1] * new
    assert asked.get("max_tokens", RESPONSE) == new
    assert ("max_tokens" in asked) == (new < RESPONSE)


def test_a_limit_needs_no_prefix_columns() -> None:
    """A batch in which nobody begins with anything has none of them."""
    output, asked = run(**{NEW_TOKENS_COLUMN: 3})
    assert asked["max_tokens"] == 3 and output.response_ids == [100, 101, 102]


@pytest.mark.parametrize("columns", [prefix(*range(RESPONSE)), prefix(*range(RESPONSE + 1)), {NEW_TOKENS_COLUMN: 0}])
def test_no_room_is_an_error(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leaves no room to generate"):
        run(**columns)
