"""A tiny random model with a chat template, benchmarks in the package's schema, an engine without a model, and settings of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unify_posttrain.evaluate import compose_evaluation
from unify_posttrain.evaluation import conduct as conduct_module
from unify_posttrain.evaluation.engines import Output, Request
from unify_posttrain.evaluation.settings import Evaluation

REWARD = "pkg://unify_posttrain.tasks.arithmetic"


def write_benchmark(path: Path, questions: Sequence[tuple[str, str, str]]) -> Path:
    """(source, question, ground truth) as a parquet file."""
    rows = [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": question}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"index": index, "split": "test"},
        }
        for index, (source, question, truth) in enumerate(questions)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of two layers with the character tokenizer; tied weights, as the small Qwen models have them."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from unify_posttrain.tasks.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=128)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny"
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture()
def benchmark_file(tmp_path: Path) -> Path:
    """Five sums of two sources; the third is longer than the others."""
    return write_benchmark(
        tmp_path / "sums.parquet",
        [
            ("easy", "1+2=", "3"),
            ("easy", "2+2=", "4"),
            ("hard", "11111+11111=", "22222"),
            ("hard", "5+5=", "10"),
            ("hard", "9+1=", "10"),
        ],
    )


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> dict[str, Any]:
    """A reward with every field: the answer is the text, `?` is none, and the ground truth `bad` is unusable."""
    right = float(solution_str == ground_truth)
    return {
        "score": right,
        "acc": right,
        "pred": "" if solution_str == "?" else solution_str,
        "gold_ok": float(ground_truth != "bad"),
    }


@pytest.fixture()
def plain_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards without verl's loader, whose import takes seconds (tests/evaluation/test_rewards.py has it)."""
    monkeypatch.setattr(conduct_module, "load_reward", lambda node, *_: compute_score)


class ScriptedEngine:
    """Answers a request by a function of it; remembers what it was asked; may be killed after some chunks.

    Args:
        answer: request -> characters of the response.
        encode: text -> token ids.
        chunks: calls of `generate` that succeed; the next one raises KeyboardInterrupt.
    """

    def __init__(
        self, answer: Callable[[Request], str], encode: Callable[[str], list[int]], eos: int, chunks: int | None = None
    ) -> None:
        self.answer, self.encode, self.eos, self.chunks = answer, encode, eos, chunks
        self.asked: list[Request] = []
        self.closed = False

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        if self.chunks is not None:
            self.chunks -= 1
            if self.chunks < 0:
                raise KeyboardInterrupt
        self.asked += requests
        return [Output([*self.encode(self.answer(request)), self.eos], truncated=request.number % 4 == 3) for request in requests]

    def close(self) -> None:
        self.closed = True


@pytest.fixture()
def scripted(tiny_model: Path) -> Callable[..., ScriptedEngine]:
    """scripted(answer, chunks=None) -> an engine; by default the answer is a digit that the seed decides."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def build(answer: Callable[[Request], str] | None = None, chunks: int | None = None) -> ScriptedEngine:
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        return ScriptedEngine(answer or (lambda request: "34?10"[request.seed % 5]), encode, tokenizer.eos_token_id, chunks)

    return build


@pytest.fixture()
def settings(tiny_model: Path, benchmark_file: Path, tmp_path: Path) -> Callable[..., Evaluation]:
    """settings("n=8", …) -> an evaluation of the tiny model on the five sums with 4 samples each, in chunks of 3."""

    def build(*overrides: str) -> Evaluation:
        base = {
            "model": str(tiny_model),
            "benchmarks": f"[{benchmark_file}]",
            "output": str(tmp_path / "out"),
            "engine": "hf",
            "dtype": "float32",
            "n": "4",
            "temperature": "1.0",
            "max_response_length": "12",
            "chunk_size": "3",
            "threads": "2",
            "statistics.resamples": "200",
            "file.reward": f"{{path: '{REWARD}', name: compute_score}}",
        }
        given = {override.partition("=")[0].lstrip("+") for override in overrides}
        return Evaluation.from_config(
            compose_evaluation([*(f"{key}={value}" for key, value in base.items() if key not in given), *overrides])
        )

    return build
