"""Lengths in tokens, counted as the trainer will count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unify_posttrain.preparation.rows import Candidate
from unify_posttrain.untrusted.remote_code import local_documents, refuse_code

THINK_OPENING = "<think>\n"  # a template may open it; the same opening of a target is then not written twice


class TokenCounter:
    """Counts the tokens of rendered prompts and of targets.

    Args:
        tokenizer: of Hugging Face, with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, name: str, chat_template: str | None) -> TokenCounter:
        """Load a tokenizer.

        Args:
            name: folder, or name on the hub.
            chat_template: in place of the tokenizer's own; None: that one.

        Raises:
            ValueError: it cannot be loaded, asks for code of its own, or there is no chat template.
        """
        from transformers import AutoTokenizer

        documents = local_documents(name, download=True)
        if documents is not None:
            refuse_code(documents, f"prepare.task.tokenizer={name}", trust_key=None)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"prepare.task.tokenizer={name} cannot be loaded ({reason}); give a model folder or a name on the hub"
            ) from error
        tokenizer.chat_template = chat_template or tokenizer.chat_template
        if tokenizer.chat_template is None:
            raise ValueError(
                f"prepare.task.tokenizer={name} has no chat template; set prepare.task.chat_template (by default the run's "
                "actor_rollout_ref.model.custom_chat_template)"
            )
        return cls(tokenizer)

    def measure(self, candidates: Sequence[Candidate]) -> list[tuple[int, list[int]]]:
        """Per candidate, tokens of the rendered prompt and of each target, its end token included."""
        prompts = [
            self.tokenizer.apply_chat_template(candidate.prompt, add_generation_prompt=True, tokenize=False)
            for candidate in candidates
        ]
        texts = [
            target.removeprefix(THINK_OPENING) if prompt.endswith(THINK_OPENING) else target
            for prompt, candidate in zip(prompts, candidates, strict=True)
            for target in candidate.targets
        ]
        counts = iter(self._count(texts))
        return [
            (length, [next(counts) + 1 for _ in candidate.targets])
            for length, candidate in zip(self._count(prompts), candidates, strict=True)
        ]

    def _count(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]


def summary(lengths: Sequence[int], limit: int, quantiles: Sequence[float]) -> dict[str, Any] | None:
    """Count, mean, number over ``limit``, and quantiles (the smallest length that so large a share does not exceed).

    >>> summary([1, 2, 3, 10], limit=3, quantiles=[0.5, 1])
    {'count': 4, 'limit': 3, 'over': 1, 'mean': 4.0, 'quantiles': {'0.5': 2, '1': 10}}
    """
    if not len(lengths):
        return None
    values = np.asarray(lengths, dtype=np.int64)
    found = np.quantile(values, list(quantiles), method="inverted_cdf")
    return {
        "count": len(values),
        "limit": limit,
        "over": int((values > limit).sum()),
        "mean": round(float(values.mean()), 1),
        "quantiles": {f"{share:g}": int(value) for share, value in zip(quantiles, found, strict=True)},
    }
