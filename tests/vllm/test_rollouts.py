"""verl's vLLM replica against the transformers engine and a plain forward pass: the same weights, one start of Ray for all tests.

The differences of log-probabilities are printed (pytest -rP or -s shows them).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unify_posttrain.backend.seams import HEAD_DIMS
from unify_posttrain.rollout.decoding import end_tokens
from unify_posttrain.rollout.hf_server import HFServer

from .conftest import AGENT_LOOPS, LIMIT, VLLMWorld
from .two_turns import OBSERVATION, TURN_TOKENS, TURNS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2 * LIMIT)]

RESPONSE = 40
# Two implementations of the same float32 arithmetic: over 3,000 tokens they differed by 4e-7 in the mean and 3e-5 at most. Other
# weights, positions or tokens in the cache would show at 1e-2 and above.
LOG_PROB_BOUND = 1e-4

Rollout = dict[str, Any]


@pytest.fixture(scope="module")
def cases(world: VLLMWorld) -> dict[str, list[Rollout]]:
    file = world.rollouts(f"actor_rollout_ref.rollout.agent.agent_loop_config_path={AGENT_LOOPS}")
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(world: VLLMWorld) -> Any:
    return AutoModelForCausalLM.from_pretrained(world.home / "models" / "tiny_qwen2", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(world: VLLMWorld) -> Any:
    return AutoTokenizer.from_pretrained(world.home / "models" / "tiny_qwen2")


@pytest.fixture(scope="module")
def transformers_engine(world: VLLMWorld, model: Any, tokenizer: Any) -> HFServer:
    folder = str(world.home / "models" / "tiny_qwen2")
    server = HFServer(
        model_path=folder, pad_id=tokenizer.pad_token_id, eos_ids=end_tokens(folder, tokenizer.eos_token_id),
        response_length=RESPONSE, max_context=12 + RESPONSE, max_batch=64, gather_seconds=0.01, dtype="float32",
        override_config={"attn_implementation": "sdpa"},
    )  # fmt: skip
    server.load_weights(dict(model.named_parameters()))
    return server


def greedily(server: HFServer, prompts: list[list[int]], max_tokens: list[int]) -> list[Any]:
    async def serve() -> list[Any]:
        calls = [
            server.generate(str(i), prompt, {"temperature": 0, "max_tokens": limit, "logprobs": True})
            for i, (prompt, limit) in enumerate(zip(prompts, max_tokens, strict=True))
        ]
        return await asyncio.gather(*calls)

    return asyncio.run(serve())


def differences(model: Any, rollouts: list[Rollout]) -> torch.Tensor:
    """|engine's log-probability - that of one forward pass over prompt and response| at every sampled token."""
    found = []
    for rollout in rollouts:
        ids = torch.tensor([[*rollout["prompt"], *rollout["response"]]])
        with torch.inference_mode():
            log_probs = torch.log_softmax(model(ids).logits[0, len(rollout["prompt"]) - 1 : -1].double(), dim=-1)
        chosen = log_probs.gather(-1, torch.tensor(rollout["response"]).unsqueeze(-1)).squeeze(-1)
        sampled = torch.tensor(rollout["mask"]).bool()
        found.append((torch.tensor(rollout["log_probs"], dtype=torch.float64) - chosen).abs()[sampled])
    return torch.cat(found)


def state(what: str, difference: torch.Tensor, record_property: Any) -> None:
    figures = f"{len(difference)} tokens, max {difference.max():.2e}, mean {difference.mean():.2e}"
    print(f"log-prob difference, {what}: {figures}")
    record_property(what, figures)


def test_greedy_tokens_are_those_of_the_transformers_engine(
    cases: dict[str, list[Rollout]], transformers_engine: HFServer, record_property: Any
) -> None:
    rollouts = cases["greedy"]
    outputs = greedily(transformers_engine, [rollout["prompt"] for rollout in rollouts], [RESPONSE] * len(rollouts))
    assert len(rollouts) == 32 and len({tuple(rollout["response"]) for rollout in rollouts}) > 8
    assert [rollout["response"] for rollout in rollouts] == [output.token_ids for output in outputs]
    ours = torch.tensor([value for output in outputs for value in output.log_probs], dtype=torch.float64)
    theirs = torch.tensor([value for rollout in rollouts for value in rollout["log_probs"]], dtype=torch.float64)
    state("greedy, vLLM and transformers engine", (ours - theirs).abs(), record_property)
    assert (ours - theirs).abs().max() < LOG_PROB_BOUND


@pytest.mark.parametrize("case", ["sampled", "opened", "two_turns"])
def test_log_probs_are_those_of_one_forward_pass(
    case: str, cases: dict[str, list[Rollout]], model: Any, record_property: Any
) -> None:
    """Also of responses made by two requests: had a token been lost or changed between them, the rest would differ."""
    difference = differences(model, cases[case])
    state(f"{case}, vLLM and a forward pass", difference, record_property)
    assert len(difference) > 300 and difference.max() < LOG_PROB_BOUND


def test_seeds_belong_to_requests(cases: dict[str, list[Rollout]]) -> None:
    first, again, other = ([r["response"] for r in cases[name]] for name in ("sampled", "sampled_again", "other_seeds"))
    assert [r["seed"] for r in cases["sampled_again"]] == [r["seed"] for r in cases["sampled"]]
    assert first == again, "the same seeds in another order of requests"
    assert sum(a != b for a, b in zip(first, other, strict=True)) > len(first) // 2


def test_response_prefixes_come_first_and_are_continued(
    cases: dict[str, list[Rollout]], transformers_engine: HFServer, tokenizer: Any
) -> None:
    prefix = tokenizer("12", add_special_tokens=False)["input_ids"]
    for row, rollout in enumerate(cases["opened"]):
        given = row % 3
        assert rollout["response"][:given] == prefix[:given]
        assert rollout["mask"] == [0] * given + [1] * (len(rollout["response"]) - given)
        assert rollout["log_probs"][:given] == [0.0] * given
    rollouts = cases["opened_greedy"]
    prompts = [[*rollout["prompt"], *prefix[: row % 3]] for row, rollout in enumerate(rollouts)]
    outputs = greedily(transformers_engine, prompts, [RESPONSE - row % 3 for row in range(len(rollouts))])
    assert [r["response"] for r in rollouts] == [[*prefix[: i % 3], *each.token_ids] for i, each in enumerate(outputs)]


def test_two_turns_keep_what_was_sampled_and_mask_what_was_said(
    cases: dict[str, list[Rollout]], transformers_engine: HFServer, tokenizer: Any
) -> None:
    observation = tokenizer(OBSERVATION, add_special_tokens=False)["input_ids"]
    for case in ("two_turns", "two_turns_greedy"):
        for rollout in cases[case]:
            said = [position for position, sampled in enumerate(rollout["mask"]) if not sampled]
            start, end = said[0], said[-1] + 1
            assert said == list(range(start, end)) and rollout["response"][start:end] == observation
            assert rollout["log_probs"][start:end] == [0.0] * len(observation)
            for turn in (rollout["response"][:start], rollout["response"][end:]):
                assert 1 <= len(turn) <= TURN_TOKENS
                assert len(turn) == TURN_TOKENS or turn[-1] == tokenizer.eos_token_id
                assert tokenizer.eos_token_id not in turn[:-1]
    rollouts = cases["two_turns_greedy"]
    contexts: list[list[int]] = [rollout["prompt"] for rollout in rollouts]
    for turn in range(TURNS):
        contexts = [context + observation if turn else context for context in contexts]
        outputs = greedily(transformers_engine, contexts, [TURN_TOKENS] * len(contexts))
        contexts = [[*context, *output.token_ids] for context, output in zip(contexts, outputs, strict=True)]
    assert [[*rollout["prompt"], *rollout["response"]] for rollout in rollouts] == contexts


def test_head_dimensions_that_the_start_up_checks_admit_are_those_of_the_wheel() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(HEAD_DIMS) == CPUAttentionBackend.get_supported_head_sizes()
