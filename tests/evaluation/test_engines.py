"""Engines: transformers decodes as the trainer's server does; vLLM gets the same requests."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unify_posttrain.evaluation.engines import EngineSettings, Request, start_engine

HF = EngineSettings(
    name="hf", dtype="float32", max_context=40, max_batch=4, override_config={"attn_implementation": "sdpa"}, vllm={}
)
VLLM = replace(HF, name="vllm", max_context=20, vllm={"gpu_memory_utilization": 0.5})


def request(row: int, prompt: tuple[int, ...], **changes: Any) -> Request:
    base = Request(row, 0, prompt, temperature=1.0, top_p=0.9, top_k=-1, max_tokens=9, seed=100 + row)
    return replace(base, **changes)


REQUESTS = [request(i, tuple(range(10, 12 + i))) for i in range(6)]


def test_the_same_tokens_as_the_trainers_server(tiny_model: Path) -> None:
    from unify_posttrain.rollout.hf_server import HFServer

    engine = start_engine(tiny_model, replace(HF, max_batch=16))
    server = HFServer(
        model_path=str(tiny_model), pad_id=engine.pad_id, eos_ids=engine.eos_ids, response_length=9, max_context=40, max_batch=16,
        gather_seconds=0.01, dtype="float32", override_config={"attn_implementation": "sdpa"},
    )  # fmt: skip
    server.load_weights(dict(engine.model.named_parameters()))

    async def serve() -> list[Any]:
        sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
        calls = [server.generate(str(r.row), list(r.prompt_ids), {**sampling, "seed": r.seed}) for r in REQUESTS]
        return await asyncio.gather(*calls)

    expected = [output.token_ids for output in asyncio.run(serve())]
    assert [output.token_ids for output in engine.generate(REQUESTS)] == expected
    assert len({tuple(tokens) for tokens in expected}) > 1


def test_a_response_does_not_depend_on_its_batch(tiny_model: Path) -> None:
    engine = start_engine(tiny_model, HF)  # batches of 4
    together = engine.generate(REQUESTS)
    assert [engine.generate([each])[0] for each in reversed(REQUESTS)] == together[::-1]


def test_cut_responses_are_said_to_be(tiny_model: Path) -> None:
    engine = start_engine(tiny_model, HF)
    eos = engine.eos_ids[0]
    for output in engine.generate([request(i, (10, 11), max_tokens=60, seed=i) for i in range(8)]):
        assert output.truncated == (output.token_ids[-1] != eos)
        assert len(output.token_ids) == 38 if output.truncated else len(output.token_ids) <= 38  # 40 less the prompt of 2


def test_no_room_for_a_token(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="no room in max_context=40"):
        start_engine(tiny_model, HF).generate([request(0, tuple(range(10, 50)))])


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        start_engine(tmp_path, HF)


def test_unknown_engine() -> None:
    with pytest.raises(ValueError, match="engine='tgi' is unknown; choose one of vllm, hf"):
        replace(HF, name="tgi")


def test_vllm_that_is_not_installed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"engine=vllm needs vLLM.*pip install.*engine=hf"):
        start_engine(tiny_model, VLLM)


def test_what_vllm_is_asked(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with vLLM's interface: LLM(...).generate(prompts, sampling_params) -> RequestOutput."""
    built: dict[str, Any] = {}

    class LLM:
        def __init__(self, **settings: Any) -> None:
            built["settings"] = settings

        def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
            built["prompts"], built["params"] = prompts, params
            reasons = ["stop", "length"]
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=(1, 2, i), finish_reason=reasons[i])])
                for i in range(len(prompts))
            ]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    engine = start_engine(tiny_model, VLLM)
    outputs = engine.generate([request(0, (5, 6)), request(1, tuple(range(15)), temperature=0.0)])
    assert built["settings"] == {
        "model": str(tiny_model), "dtype": "float32", "max_model_len": 20, "max_num_seqs": 4, "trust_remote_code": False,
        "gpu_memory_utilization": 0.5,
    }  # fmt: skip
    assert built["prompts"] == [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": list(range(15))}]
    assert [(p.seed, p.temperature, p.max_tokens, p.n, p.top_p) for p in built["params"]] == [
        (100, 1.0, 9, 1, 0.9),
        (101, 0.0, 5, 1, 0.9),
    ]
    assert [(output.token_ids, output.truncated) for output in outputs] == [([1, 2, 0], False), ([1, 2, 1], True)]
    with pytest.raises(ValueError, match="no room"):
        engine.generate([request(0, tuple(range(20)))])


def test_vllm_scores_answers_as_prompts(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class LLM:
        def __init__(self, **_: Any) -> None: ...

        def generate(self, prompts: list[Any], params: Any, use_tqdm: bool) -> list[Any]:
            asked.append(params)
            tables = [[None, *({token: SimpleNamespace(logprob=-float(token))} for token in each["prompt_token_ids"][1:])]
                      for each in prompts]  # fmt: skip
            return [SimpleNamespace(prompt_logprobs=table) for table in tables]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    engine = start_engine(tiny_model, VLLM)
    assert engine.log_probs([([5, 6], [7, 8]), ([9], [1])]) == [[-7.0, -8.0], [-1.0]]
    assert (asked[0].max_tokens, asked[0].prompt_logprobs) == (1, 0)
    with pytest.raises(ValueError, match="prompt and worked answer of 20 tokens exceed max_context=20"):
        engine.log_probs([([1] * 15, [1] * 5)])
