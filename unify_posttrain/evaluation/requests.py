"""What an engine takes and gives: requests, each with its own seed, and responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ENGINES = ("vllm", "hf")


@dataclass(frozen=True)
class Request:
    """One response to be generated.

    Attributes:
        row, number: which problem and which of its samples.
        prompt_ids: the prompt.
        temperature: 0 takes the most likely token.
        top_p: nucleus mass in (0, 1].
        top_k: -1 for all tokens.
        max_tokens: length limit of the response, its end token included.
        seed: of this response's draws.
        images: whose pads are in the prompt, in their order; of Pillow.
    """

    row: int
    number: int
    prompt_ids: tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    images: tuple[Any, ...] = ()

    @property
    def order(self) -> tuple[int, tuple[int, ...], int]:
        """Short prompts first: batches with little padding, and the same ones that the trainer's engine makes."""
        return len(self.prompt_ids), self.prompt_ids, self.seed


@dataclass(frozen=True)
class Output:
    """One response: its tokens (an end token included, if it came) and whether it was cut at the limit."""

    token_ids: list[int]
    truncated: bool


class Engine(Protocol):
    """Holds one model."""

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """One output per request, in their order."""
        ...

    def log_probs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Of (prompt ids, target ids): log p of every token of the target, in nats."""
        ...

    def close(self) -> None:
        """Free the memory; the engine is of no use afterwards."""
        ...


@dataclass(frozen=True)
class EngineSettings:
    """How a model is run.

    Attributes:
        name: vllm or hf.
        dtype: of the weights.
        max_context: prompt and response together.
        max_batch: responses generated at once.
        override_config: hf: settings of the model configuration, such as attn_implementation.
        vllm: further arguments of `vllm.LLM`.
    """

    name: str
    dtype: str
    max_context: int
    max_batch: int
    override_config: Mapping[str, Any]
    vllm: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ValueError(f"engine={self.name!r} is unknown; choose one of {', '.join(ENGINES)}")
