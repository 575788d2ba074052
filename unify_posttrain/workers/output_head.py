"""Log-probabilities and entropies of the tokens that are read, in place of a model's logits.

While a backend runs the model, the module that would map (tokens, D) to (tokens, V) answers with (tokens, 2): log-prob and entropy
by `objective.log_probs.token_log_probs`, zeros for prompts, padding and masked tokens. It answers inside the model's own forward,
where FSDP has gathered its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from unify_posttrain.objective.log_probs import token_log_probs


def labels_and_wanted(micro_batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(B, L) next token of every position, and whether its log-prob is read: trained tokens and hints of the response, or, in a
    batch without `response_mask` (verl's log-prob stages), every attended token of it."""
    input_ids, attention_mask = micro_batch["input_ids"], micro_batch["attention_mask"]
    width = micro_batch["responses"].shape[-1]
    if "response_mask" in micro_batch:
        read = micro_batch["response_mask"].bool()
        if "prefix_mask" in micro_batch:
            read = read | micro_batch["prefix_mask"].bool()
    else:
        read = attention_mask[:, -width:].bool()
    wanted = torch.zeros_like(input_ids, dtype=torch.bool)
    wanted[:, -width - 1 : -1] = read
    return input_ids.roll(-1, dims=1), wanted


@dataclass(frozen=True)
class LogProbHead:
    """What the output head of a model answers with while `on`.

    Attributes:
        labels, wanted: (tokens,) next token, and whether its log-prob is read.
        chunk: tokens whose logits exist at once.
        temperature: τ > 0.
        entropy: also take entropies of the wanted tokens.
    """

    labels: Tensor
    wanted: Tensor
    chunk: int
    temperature: float
    entropy: bool

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Let `model`'s output head answer, and its output carry `log_probs` and `entropy` (rows, tokens) as verl's fused path
        reads them."""
        head, answers = output_head(model), []
        # Before the model runs: the host waits for its size, and with it for everything that the device was given until then.
        index = self.wanted.nonzero().squeeze(-1)

        def forward(hidden: Tensor) -> Tensor:
            answers.append(self.answer(head.weight, hidden, index))
            return answers[-1]

        def rename(_module: nn.Module, _args: Any, output: Any) -> SimpleNamespace:
            if not answers or output.logits is not answers[-1]:
                raise ValueError(
                    f"fusion.logits_chunk={self.chunk}: {type(model).__name__} scales or caps what its output head returns; "
                    "set it to null"
                )
            return SimpleNamespace(log_probs=output.logits[..., 0], entropy=output.logits[..., 1])

        hooks = [
            model.register_forward_pre_hook(_without_temperature, with_kwargs=True),
            model.register_forward_hook(rename),
        ]
        head.forward = forward
        try:
            yield
        finally:
            del head.forward
            for hook in hooks:
                hook.remove()

    def answer(self, weight: Tensor, hidden: Tensor, index: Tensor) -> Tensor:
        """(..., D) hidden states of all tokens and where the wanted ones are -> (..., 2) float32: log-prob and entropy, zeros where
        not wanted. Connected to `hidden` and `weight` even if nothing is wanted: every rank must run the same backward pass."""
        device = hidden.device.type
        if torch.is_autocast_enabled(device):  # as for the matrix product that this stands for
            dtype = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        flat = hidden.flatten(0, -2)
        if len(flat) != len(self.wanted):
            raise ValueError(
                f"fusion.logits_chunk={self.chunk}: the output head was given {len(flat)} hidden states for {len(self.wanted)} "
                "tokens; set it to null"
            )
        log_probs, entropys = token_log_probs(
            flat[index], weight, self.labels[index], chunk=self.chunk, temperature=self.temperature, entropy=self.entropy
        )
        columns = torch.stack((log_probs, torch.zeros_like(log_probs) if entropys is None else entropys), dim=-1)
        return columns.new_zeros(len(flat), 2).index_copy(0, index, columns).view(*hidden.shape[:-1], 2)


def output_head(model: nn.Module) -> nn.Linear:
    """The module that makes logits of hidden states.

    Raises:
        ValueError: it is not a plain matrix (a bias, an adapter, a model without one).
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or type(head).forward is not nn.Linear.forward:
        raise ValueError(
            f"fusion.logits_chunk: the output head of {type(model).__name__} is {head}, not a matrix without bias; set it to null"
        )
    return head


def _without_temperature(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """verl passes the temperature to models with fused kernels; the others need not know it."""
    return args, {name: value for name, value in kwargs.items() if name != "temperature"}
