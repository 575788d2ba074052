"""A model that sees, over verl's vLLM replica: it answers as the transformers engine does, and forgets pictures with their weights.

The differences of log-probabilities are printed (pytest -rP or -s shows them).
"""

from __future__ import annotations

import asyncio
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from unify_posttrain.backend import seams
from unify_posttrain.rollout.decoding import end_tokens
from unify_posttrain.rollout.hf_server import HFServer
from unify_posttrain.rollout.pictures import banned_bias, picture_inputs
from unify_posttrain.rollout.vllm_pictures import SCHEDULERS, forget_pictures

from .conftest import LIMIT, VLLMWorld
from .seeing import PROMPTS, RUN, add_shapes, pictures_of
from .test_rollouts import LOG_PROB_BOUND, RESPONSE, Rollout, state

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2 * LIMIT)]

PROMPT = 40
PROBS = "training/rollout_probs_diff_max"
# The engine draws among the tokens that are not of pictures, the actor's probabilities are of all (docs/vision.md): 0.003 with this
# model. With features that vLLM has kept from the step before it was 0.36.
BANNED_BOUND = 1e-2


@pytest.fixture(scope="module")
def seeing(world: VLLMWorld) -> VLLMWorld:
    add_shapes(world)
    return world


@pytest.fixture(scope="module")
def cases(seeing: VLLMWorld) -> dict[str, list[Rollout]]:
    return json.loads(seeing.rollouts(*RUN).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pictures(seeing: VLLMWorld) -> list[Any]:
    return pictures_of(seeing)


@pytest.fixture(scope="module")
def folder(seeing: VLLMWorld) -> str:
    return str(seeing.home / "models" / "tiny_qwen2_5_vl")


@pytest.fixture(scope="module")
def model(folder: str) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def greedily(folder: str, model: Any, tokenizer: Any, prompts: list[list[int]], shown: list[Any], room: list[int]) -> list[Any]:
    """The transformers engine's answers."""
    server = HFServer(
        model_path=folder, pad_id=tokenizer.pad_token_id, eos_ids=end_tokens(folder, tokenizer.eos_token_id),
        response_length=RESPONSE, max_context=PROMPT + RESPONSE, max_batch=64, gather_seconds=0.01, dtype="float32",
        override_config={"attn_implementation": "sdpa"},
    )  # fmt: skip
    server.load_weights(dict(model.named_parameters()))

    async def serve() -> list[Any]:
        params = {"temperature": 0, "logprobs": True, "logit_bias": banned_bias(tokenizer)}
        return await asyncio.gather(
            *(
                server.generate(str(i), prompt, {**params, "max_tokens": limit}, image_data=[picture])
                for i, (prompt, picture, limit) in enumerate(zip(prompts, shown, room, strict=True))
            )
        )

    return asyncio.run(serve())


def test_greedy_answers_are_those_of_the_transformers_engine(
    cases: dict[str, list[Rollout]], pictures: list[Any], folder: str, model: Any, tokenizer: Any, record_property: Any
) -> None:
    rollouts = cases["greedy"]
    outputs = greedily(folder, model, tokenizer, [r["prompt"] for r in rollouts], pictures, [RESPONSE] * len(rollouts))
    equal = sum(rollout["response"] == output.token_ids for rollout, output in zip(rollouts, outputs, strict=True))
    print(f"equal greedy answers: {equal} of {len(rollouts)}")
    record_property("equal greedy answers", equal)
    assert len(rollouts) == PROMPTS and len({tuple(rollout["response"]) for rollout in rollouts}) > 8
    assert equal == PROMPTS
    ours = torch.tensor([value for output in outputs for value in output.log_probs], dtype=torch.float64)
    theirs = torch.tensor([value for rollout in rollouts for value in rollout["log_probs"]], dtype=torch.float64)
    state("greedy with pictures, vLLM and transformers engine", (ours - theirs).abs(), record_property)
    assert (ours - theirs).abs().max() < LOG_PROB_BOUND


def test_the_pictures_decide(cases: dict[str, list[Rollout]], pictures: list[Any], folder: str, model: Any, tokenizer: Any) -> None:
    """The comparison can fail: with the picture of the next prompt most answers are others."""
    rollouts = cases["greedy"]
    others = [*pictures[1:], pictures[0]]
    outputs = greedily(folder, model, tokenizer, [r["prompt"] for r in rollouts], others, [RESPONSE] * len(rollouts))
    assert sum(r["response"] != output.token_ids for r, output in zip(rollouts, outputs, strict=True)) > PROMPTS // 2


@pytest.mark.parametrize("case", ["sampled", "opened"])
def test_log_probs_are_those_of_one_forward_pass(
    case: str,
    cases: dict[str, list[Rollout]],
    pictures: list[Any],
    folder: str,
    model: Any,
    tokenizer: Any,
    record_property: Any,
) -> None:
    processor, banned, found = AutoProcessor.from_pretrained(folder), list(banned_bias(tokenizer)), []
    for rollout, picture in zip(cases[case], pictures, strict=True):
        assert not set(banned) & set(rollout["response"]), "no token of pictures is drawn"
        ids = torch.tensor([[*rollout["prompt"], *rollout["response"]]])
        seen = {name: value for name, value in picture_inputs(processor, [picture]).items() if name != "images_seqlens"}
        seen |= seams.rope_inputs(ids, processor)
        with torch.inference_mode():
            logits = model(input_ids=ids, **seen).logits[0, len(rollout["prompt"]) - 1 : -1].double()
            logits[:, banned] = float("-inf")
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(rollout["response"]).unsqueeze(-1)).squeeze(-1)
        drawn = torch.tensor(rollout["mask"]).bool()
        found.append((torch.tensor(rollout["log_probs"], dtype=torch.float64) - chosen).abs()[drawn])
    difference = torch.cat(found)
    state(f"{case} with pictures, vLLM and a forward pass", difference, record_property)
    assert len(difference) > 300 and difference.max() < LOG_PROB_BOUND


def test_seeds_belong_to_requests_with_pictures(cases: dict[str, list[Rollout]]) -> None:
    first, again, other = ([r["response"] for r in cases[name]] for name in ("sampled", "sampled_again", "other_seeds"))
    assert first == again, "the same seeds in another order of requests"
    assert sum(a != b for a, b in zip(first, other, strict=True)) > PROMPTS // 2


def test_response_prefixes_are_continued_behind_a_picture(
    cases: dict[str, list[Rollout]], pictures: list[Any], folder: str, model: Any, tokenizer: Any
) -> None:
    prefix = tokenizer("12", add_special_tokens=False)["input_ids"]
    rollouts = cases["opened_greedy"]
    given = [prefix[: row % 3] for row in range(len(rollouts))]
    prompts = [[*rollout["prompt"], *begun] for rollout, begun in zip(rollouts, given, strict=True)]
    outputs = greedily(folder, model, tokenizer, prompts, pictures, [RESPONSE - len(begun) for begun in given])
    assert [r["response"] for r in rollouts] == [[*begun, *each.token_ids] for begun, each in zip(given, outputs, strict=True)]
    assert [r["mask"][: len(begun)] for r, begun in zip(rollouts, given, strict=True)] == [[0] * len(begun) for begun in given]


def test_updates_of_the_vision_tower_reach_the_engine(seeing: VLLMWorld) -> None:
    """Every step shows the same pictures: features that were kept from the step before would be of another tower, and the actor's
    probabilities would differ from the engine's by what the step has moved."""
    seeing.train(
        "shapes", *RUN, "algorithm=hpt", "trainer.total_training_steps=3", "trainer.total_epochs=3", "trainer.test_freq=3",
        "actor_rollout_ref.actor.optim.lr=2e-3",
    )  # fmt: skip
    metrics = seeing.metrics("shapes")
    assert sorted(metrics) == [1, 2, 3] and all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    found = [entry[PROBS] for entry in metrics.values() if PROBS in entry]
    print(f"{PROBS}: {found}")
    assert len(found) > 1 and max(found) < BANNED_BOUND
    assert all(entry["actor/grad_norm"] > 0 for entry in metrics.values())
    assert all(sum(entry[f"fusion/rows_{kind}"] for entry in metrics.values()) > 0 for kind in ("on", "demo"))
    assert "val-core/shapes_hard/acc/mean@1" in metrics[3]


def books() -> tuple[Any, Any]:
    """vLLM's books of features after two requests, of which the first is still running, and what makes further requests."""
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

    def request(name: str, picture: str, tokens: int) -> Any:
        counts = dict.fromkeys(("get_num_encoder_tokens", "get_num_encoder_embeds"), lambda _: tokens)  # vLLM 0.12, 0.24
        return SimpleNamespace(request_id=name, mm_features=[SimpleNamespace(identifier=picture)], **counts)

    kept, running, ended = EncoderCacheManager(10), request("a", "one", 4), request("b", "two", 3)
    for each in (running, ended):
        assert not kept.check_and_update_cache(each, 0) and kept.can_allocate(each, 0, 10, 0)
        kept.allocate(each, 0)
    kept.free(ended)
    assert kept.check_and_update_cache(request("c", "two", 3), 0), "vLLM would show features that it has kept"
    kept.free(request("c", "two", 3))
    return kept, request


@pytest.mark.skipif(seams.FORGETS_PICTURES, reason="verl's server has this vLLM forget pictures")
def test_vllms_own_books_agree_when_pictures_are_forgotten() -> None:
    """Afterwards a third request makes its features anew."""
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.core.sched.scheduler import Scheduler

    kept, request = books()
    forget_pictures(kept)
    assert not kept.check_and_update_cache(request("d", "two", 3), 0)
    assert kept.check_and_update_cache(request("a", "one", 4), 0)
    assert kept.get_freed_mm_hashes() == ["two"] and (kept.num_free_slots, kept.num_freeable_slots) == (6, 6)
    for name in ("ForgettingScheduler", "ForgettingAsyncScheduler"):
        assert issubclass(resolve_obj_by_qualname(f"{SCHEDULERS}.{name}"), Scheduler)


@pytest.mark.skipif(not seams.FORGETS_PICTURES, reason="a scheduler of this package forgets pictures")
def test_verls_server_has_vllm_forget_pictures() -> None:
    """What verl calls when the engine has new weights: if that ended, `seams.FORGETS_PICTURES` would promise what nobody does."""
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    kept, request = books()

    class Engine:
        """As much of vLLM's as is called."""

        async def reset_prefix_cache(self, **_: Any) -> None: ...

        async def reset_mm_cache(self) -> None: ...

        async def reset_encoder_cache(self) -> None:
            kept.reset()  # as vLLM's core does in its own process

    asyncio.run(vLLMHttpServer.clear_kv_cache(SimpleNamespace(node_rank=0, engine=Engine())))
    assert not kept.check_and_update_cache(request("d", "two", 3), 0) and kept.num_free_slots == 10
