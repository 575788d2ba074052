"""The agent loop of environments: a hand-made episode token by token, why episodes end, and what verl's collation keeps of them.
The engine is made up: it says what it is told to, in characters of the tiny tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from transformers import Qwen2Config
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopManager, AgentLoopWorker, DictConfigWrap
from verl.utils import hf_processor
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

from tests.tasks.environments import hand_row
from tests.tiny_vision import picture, prompt
from unify_posttrain.backend import seams
from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.experience.transcript import turn_seed
from unify_posttrain.rewards.calling import OUTCOME
from unify_posttrain.rollout import environment_loop
from unify_posttrain.rollout.agent_loop import (
    NEW_TOKENS_COLUMN,
    PREFIX_COLUMN,
    PREFIX_TRAINED_COLUMN,
    SEED_COLUMN,
    SeededSingleTurnAgentLoop,
)
from unify_posttrain.rollout.environment_loop import EnvironmentAgentLoop
from unify_posttrain.rollout.pictures import PictureReader, banned_bias
from unify_posttrain.tasks.tokenizer import build_tokenizer
from unify_posttrain.tasks.turns import Step
from unify_posttrain.trainer.rewards import RewardReader

from .handles import Balancer, Handle

TOKENIZER = build_tokenizer(512)
END = TOKENIZER.eos_token_id
BEFORE, AFTER = [4], [1, 5]  # <|user|>; <|end|><|assistant|>
WRONG, RIGHT = "{f:1+2+3+4=10}", "{f:(1+2+3)*4=24}"
TOLD = "no:ok 1"  # what the compact style says to the first: a solution begins so


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


class Engine:
    """Says its answers one after another, with their end token if they have room; remembers what it was asked."""

    def __init__(self, *answers: str, tokenizer: Any = TOKENIZER, end: int | None = None) -> None:
        self.answers, self.tokenizer, self.end = list(answers), tokenizer, end or tokenizer.eos_token_id
        self.asked: list[dict[str, Any]] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **shown: Any
    ) -> TokenOutput:
        answer = self.answers[len(self.asked) % len(self.answers)]
        said = [*self.tokenizer.encode(answer, add_special_tokens=False), self.end]
        said = said[: sampling_params["max_tokens"]]
        self.asked.append({"conversation": request_id, "prompt_ids": prompt_ids, "shown": shown, **sampling_params})
        return TokenOutput(token_ids=said, log_probs=[-len(self.asked) - place / 100 for place in range(len(said))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's files without its weights, which nobody loads."""
    made = tmp_path_factory.mktemp("loop") / "model"
    TOKENIZER.save_pretrained(made)
    shape = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "num_attention_heads": 2, "architectures": ["Qwen2ForCausalLM"]}
    Qwen2Config(eos_token_id=[END, 2], **shape).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def config(folder: Path) -> Any:
    return compose_config(
        [
            "task=general_points", "algorithm=grpo", f"actor_rollout_ref.model.path={folder}", "data.max_prompt_length=40",
            "data.max_response_length=120", "environment.max_turns=3", "environment.max_tokens_per_turn=30",
            "environment.min_turn_tokens=4",
        ]
    )  # fmt: skip


def changed(config: Any, **changes: Any) -> Any:
    config = config.copy()
    for key, value in changes.items():
        with open_dict(config):
            OmegaConf.update(config, key.replace("__", "."), value)
    return config


def play(
    config: Any, engine: Engine, kind: type = EnvironmentAgentLoop, logprobs: bool = True, processor: Any = None, **columns: Any
) -> Any:
    """The output of one episode of A 2 3 4."""

    async def run() -> Any:
        loop = kind(
            trainer_config=DictConfigWrap(config),
            server_manager=engine,
            tokenizer=engine.tokenizer,
            processor=processor,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
        )
        params = {"temperature": 1.0, "logprobs": logprobs}
        row = {**hand_row("A 2 3 4", style="compact"), "raw_prompt": [{"role": "user", "content": "JQK=10|A 2 3 4"}], **columns}
        output = await loop.run(params, **row)
        assert params == {"temperature": 1.0, "logprobs": logprobs}, "verl shares one dictionary between all loops of a worker"
        return output

    return asyncio.run(run())


def outcome(output: Any) -> dict[str, Any]:
    assert set(output.extra_fields["reward_extra_info"]) == {OUTCOME}
    return output.extra_fields["reward_extra_info"][OUTCOME]


def fields(output: Any) -> dict[str, Any]:
    return outcome(output)["fields"]


def prefixed(text: str, trained: bool) -> dict[str, Any]:
    return {PREFIX_COLUMN: encode(text), PREFIX_TRAINED_COLUMN: trained}


def test_an_episode_of_two_turns_token_by_token(config: Any) -> None:
    engine = Engine(WRONG, RIGHT)
    output = play(config, engine, **{SEED_COLUMN: 12345})
    prompt = [4, *encode("JQK=10|A 2 3 4"), 1, 5]
    first, told, second = [*encode(WRONG), END], [*BEFORE, *encode(TOLD), *AFTER], [*encode(RIGHT), END]
    assert output.prompt_ids == prompt
    assert output.response_ids == [*first, *told, *second]
    assert output.response_mask == [1] * len(first) + [0] * len(told) + [1] * len(second)
    # The engine says -1, -1.01, … in its first answer and -2, -2.01, … in its second.
    log_probs = [-1 - place / 100 for place in range(len(first))] + [0.0] * len(told) + [-2 - p / 100 for p in range(len(second))]
    assert output.response_logprobs == pytest.approx(log_probs)
    # no_solution -1, then 5; the score is the outcome.
    assert output.extra_fields["turn_scores"] == [-1, 5] and output.reward_score == 1.0
    found = fields(output)
    assert {key: found[key] for key in ("score", "acc", "turns", "right_turns", "first_acc", "truncated", "pred", "stop")} == {
        "score": 1, "acc": 1, "turns": 2, "right_turns": 1, "first_acc": 0, "truncated": 0, "pred": "(1+2+3)*4", "stop": "solved",
    }  # fmt: skip
    assert output.num_turns == 4 and output.extra_fields["tool_rewards"] == []
    one, two = engine.asked
    assert one["prompt_ids"] == prompt and two["prompt_ids"] == [*prompt, *first, *told], "what was sampled, not encoded again"
    assert one["conversation"] == two["conversation"], "the same server for all turns"
    assert [one["seed"], two["seed"]] == [12345, turn_seed(12345, 1)] == [12345, 671067976]
    assert [one["max_tokens"], two["max_tokens"]] == [30, 30] and one["temperature"] == 1.0


def test_what_a_prompt_shows_is_shown_in_every_turn(config: Any, seeing_folder: Path) -> None:
    """To a model that sees: its pads stand in the prompt, and no answer holds one."""
    processor = hf_processor(str(seeing_folder), use_fast=True)
    engine = Engine(WRONG, RIGHT, tokenizer=processor.tokenizer)
    seeing = changed(config, actor_rollout_ref__model__path=str(seeing_folder))
    messages = prompt("JQK=10|A 2 3 4", picture(56, 56))
    output = play(seeing, engine, processor=processor, raw_prompt=messages)
    assert tuple(output.prompt_ids) == PictureReader(processor).read(messages).ids
    (shown,) = output.multi_modal_data["images"]
    assert shown.size == (56, 56) and output.extra_fields["turn_scores"] == [-1, 5]
    assert [each["shown"]["image_data"] for each in engine.asked] == [[shown], [shown]]
    assert all(each["logit_bias"] == banned_bias(processor.tokenizer) for each in engine.asked)


@pytest.mark.parametrize(
    ("answers", "changes", "stop", "rewards", "mask_sum"),
    [
        ([WRONG], {}, "turns", [-1, -1, -2], 45),  # the penalty of used-up turns is the environment's
        (["{f:1+2+3+4=10}" + "x" * 40], {}, "length", [-1], 30),  # cut: verified, but nobody answers it
        ([RIGHT[:-4] + "}" + "x" * 40], {}, "solved", [5], 30),  # cut and already right
        # A turn of 15 and 10 tokens of feedback leave 5 of 30, and a second answer of those 5 is cut.
        ([WRONG], {"data__max_response_length": 30}, "length", [-1, -3], 20),
        ([WRONG], {"data__max_response_length": 28}, "length", [-1], 15),  # no room for a turn behind the feedback
        ([WRONG], {"actor_rollout_ref__rollout__max_model_len": 17 + 28}, "length", [-1], 15),
        ([WRONG], {"environment__max_turns": 1}, "turns", [-2], 15),
        ([WRONG], {"environment__max_turns": 1, "environment__upstream_compat": True}, "turns", [-1, -1], 30),
    ],
)  # fmt: skip
def test_why_episodes_end(
    config: Any, answers: Sequence[str], changes: dict[str, Any], stop: str, rewards: list[float], mask_sum: int
) -> None:
    output = play(changed(config, **changes), Engine(*answers))
    assert (fields(output)["stop"], output.extra_fields["turn_scores"], sum(output.response_mask)) == (stop, rewards, mask_sum)
    assert output.response_mask[-1] == 1 and len(output.response_ids) == len(output.response_mask) == len(output.response_logprobs)
    assert "seed" not in play(changed(config, **changes), engine := Engine(*answers)).extra_fields and "seed" not in engine.asked[0]


@pytest.mark.parametrize("trained", [False, True])
def test_given_tokens_are_the_beginning_of_the_first_answer(config: Any, trained: bool) -> None:
    """`{f:1+2` is given and `+3+4=10}` sampled: the environment reads both as one answer, and the second turn is the policy's."""
    engine = Engine(WRONG[6:], RIGHT)
    output = play(config, engine, **prefixed(WRONG[:6], trained))
    assert output.extra_fields["turn_scores"] == [-1, 5] and fields(output)["outcome_no_solution"] == 1
    assert output.response_ids[: len(WRONG) + 1] == [*encode(WRONG), END]
    assert output.response_mask[: len(WRONG) + 1] == [int(trained)] * 6 + [1] * (len(WRONG) - 5)
    assert output.response_logprobs[:7] == pytest.approx([0.0] * 6 + [-1.0])
    assert engine.asked[0]["prompt_ids"] == [*output.prompt_ids, *encode(WRONG[:6])]


def test_a_prefix_that_leaves_less_than_a_turn_is_still_continued(config: Any) -> None:
    small = changed(config, data__max_response_length=9)
    output = play(small, Engine("+3+4"), **prefixed(WRONG[:6], True))
    assert output.response_ids == encode(WRONG[:9]) and fields(output)["stop"] == "length"
    with pytest.raises(ValueError, match=r"a response prefix of 9 tokens leaves no room to generate in data.max_response_length=9"):
        play(small, Engine("x"), **prefixed(WRONG[:9], True))
    with pytest.raises(ValueError, match=r"a prompt of 17 tokens and a response prefix of 0 leave no room .*max_model_len=17"):
        play(changed(config, actor_rollout_ref__rollout__max_model_len=17), Engine("x"))


def test_no_more_is_added_than_the_rule_allows(config: Any) -> None:
    """15 tokens of an answer, 10 of feedback, then 3 of 28 are left: fewer than a turn begins with."""
    output = play(config, Engine(WRONG), **{NEW_TOKENS_COLUMN: 28})
    assert len(output.response_ids) == 15 and fields(output)["stop"] == "length"


def test_any_end_token_of_the_engine_completes_an_answer(config: Any) -> None:
    output = play(config, Engine(WRONG, RIGHT, end=2))
    assert output.extra_fields["turn_scores"] == [-1, 5] and output.response_ids[len(WRONG)] == 2


def test_one_turn_is_the_single_turn_loop(config: Any) -> None:
    """The same tokens, mask and log-probs; no response was longer than a turn may be."""
    once = changed(config, environment__max_turns=1, environment__max_tokens_per_turn=120)
    for columns in ({SEED_COLUMN: 7}, {**prefixed(WRONG[:6], True), SEED_COLUMN: 7}, {NEW_TOKENS_COLUMN: 9, SEED_COLUMN: 7}):
        engines = Engine(WRONG), SingleTurns(WRONG)
        ours, verls = play(once, engines[0], **columns), play(once, engines[1], SeededSingleTurnAgentLoop, **columns)
        for name in ("prompt_ids", "response_ids", "response_mask", "response_logprobs", "num_turns"):
            assert getattr(ours, name) == getattr(verls, name), name
        asked = [{key: engine.asked[0][key] for key in ("prompt_ids", "seed", "max_tokens")} for engine in engines]
        assert asked[0] == asked[1]


class SingleTurns(Engine):
    """verl's loop leaves the limit of a whole response to the engine."""

    async def generate(self, request_id: str, *, sampling_params: dict[str, Any], **kwargs: Any) -> TokenOutput:
        return await super().generate(request_id, sampling_params={"max_tokens": 120, **sampling_params}, **kwargs)


def test_no_log_probs_if_nobody_asks(config: Any) -> None:
    assert play(config, Engine(WRONG), logprobs=False).response_logprobs is None


class Elsewhere:
    """An environment that answers asynchronously, in parts, and ends before its answer is right."""

    generations = 3

    def __init__(self, failing: bool = False, image: bool = False) -> None:
        self.failing, self.image, self.seen = failing, image, []

    async def step(self, text: str, complete: bool) -> Step:
        await asyncio.sleep(0)
        self.seen.append(text)
        if self.failing and len(self.seen) == 2:
            raise KeyError("no such page")
        parts = ("page ", object() if self.image else "two")
        return Step(0.5, done=len(self.seen) == 2, feedback=() if len(self.seen) == 2 else parts)

    def fields(self) -> dict[str, Any]:
        return {"score": 0.25, "acc": 0.0, "seen": len(self.seen)}


@pytest.mark.parametrize("failing", [False, True])
def test_asynchronous_environments_and_their_failures(config: Any, failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_loop, "begin", lambda node, row: Elsewhere(failing))
    output = play(config, Engine("a", "b"))
    assert output.response_ids == [*encode("a"), END, *BEFORE, *encode("page two"), *AFTER, *encode("b"), END]
    if failing:
        assert outcome(output)["fault"] == "error" and "no such page" in outcome(output)["detail"] and output.reward_score == 0
        assert output.extra_fields["turn_scores"] == [0.5, 0.0]
    else:
        assert outcome(output) == {"score": 0.25, "fields": {"score": 0.25, "acc": 0.0, "seen": 2, "stop": "ended"}}
        assert output.extra_fields["turn_scores"] == [0.5, 0.5]


def test_what_is_no_text_is_refused(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_loop, "begin", lambda node, row: Elsewhere(image=True))
    with pytest.raises(TypeError, match=r"environment.name=general_points answers with object; feedback is of texts"):
        play(config, Engine("a"))


@pytest.mark.skipif(
    "legacy" not in seams.BACKENDS, reason="makes the worker of verl 0.7.1; runs are played by tests.benchmarks.backends"
)
@pytest.mark.parametrize("validate", [False, True])
def test_verls_collation_keeps_every_row(config: Any, validate: bool) -> None:
    """Through verl's worker and manager, and the driver's reader of outcomes: episodes of one, two and three turns."""
    prompts = [("A 2 3 4", RIGHT), ("6 6 6 6", "{f:6+6+6+6=24}"), ("4 4 10 10", "{f:4=4}")]
    rows = [hand_row(cards, style="compact") for cards, _ in prompts]
    messages = [[{"role": "user", "content": f"JQK=10|{cards}"}] for cards, _ in prompts]
    columns = {
        "raw_prompt": object_column(messages),
        SEED_COLUMN: np.arange(3),
        "row_id": np.arange(3),
        **{name: object_column([row[name] for row in rows]) for name in ("data_source", "reward_model", "extra_info")},
    }
    batch = DataProto.from_dict(tensors={"dummy": torch.zeros(3, 1)}, non_tensors=columns)
    batch.meta_info = {"global_steps": 1, **({"validate": True} if validate else {})}

    class Players(Engine):
        """The first is right at once, the second in its second turn, the third never."""

        async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> Any:
            text = TOKENIZER.decode(prompt_ids)
            said = text.count("<|assistant|>")
            cards, right = next(each for each in prompts if each[0] in text)
            asked = Engine(right if (cards, said) in {("A 2 3 4", 1), ("6 6 6 6", 2)} else "{f:1}")
            self.asked.append(sampling_params)
            return await asked.generate(request_id, prompt_ids=prompt_ids, sampling_params=sampling_params)

    async def run() -> DataProto:
        worker = AgentLoopWorker(config, [("only", Handle(engine))], Handle(Balancer()), [])
        manager = AgentLoopManager.__new__(AgentLoopManager)
        manager.agent_loop_workers = [Handle(worker)]
        return await AgentLoopManager.generate_sequences.__wrapped__(manager, batch)

    engine = Players()
    output = asyncio.run(run())
    assert len(engine.asked) == 1 + 2 + 3
    assert {params["temperature"] for params in engine.asked} == {0 if validate else 1.0}
    assert output.non_tensor_batch["turn_scores"].tolist() == [[5], [-4, 5], [-4, -4, -5]]
    assert output.batch["rm_scores"].sum(dim=-1).tolist() == [1, 1, 0]
    lengths = output.batch["attention_mask"][:, 40:].sum(dim=-1)
    assert output.batch["rm_scores"].nonzero().tolist() == [[0, int(lengths[0]) - 1], [1, int(lengths[1]) - 1]]
    assert output.batch["response_mask"].gather(1, lengths.unsqueeze(-1) - 1).tolist() == [[1]] * 3, "it ends on a sampled token"
    reader = RewardReader("here", SimpleNamespace(max_fault_share=1.0), None)
    read = reader.read(output).non_tensor_batch
    assert read["turns"].tolist() == [1, 2, 3] and read["acc"].tolist() == [1, 1, 0]
    assert read["stop"].tolist() == ["solved", "solved", "turns"]
