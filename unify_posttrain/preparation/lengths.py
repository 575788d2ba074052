"""Lengths in tokens, counted as the trainer will count them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unify_posttrain.chat import ChatTemplate, joined, target_ids, thinking_fault
from unify_posttrain.preparation.rows import Candidate
from unify_posttrain.untrusted.remote_code import local_documents, refuse_code

logger = logging.getLogger(__name__)

ADVICE = "set prepare.task.system=none, or put the system text into the user's message"


class TokenCounter:
    """Counts the tokens of rendered prompts and of targets.

    Args:
        tokenizer: of Hugging Face, with a chat template.
        options: of the template, as the trainer gives them: `data.apply_chat_template_kwargs`.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, options or {}, "prepare.task.chat_template", ADVICE)
        self.thinking: Counter[str] = Counter()  # faults where prompt and target meet, see `chat.THINKING_FAULTS`
        self._warned = False

    @classmethod
    def load(cls, name: str, chat_template: str | None, options: Mapping[str, Any] | None = None) -> TokenCounter:
        """Load a tokenizer.

        Args:
            name: folder, or name on the hub.
            chat_template: in place of the tokenizer's own; None: that one.
            options: of the template.

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
        return cls(tokenizer, options)

    def measure(self, candidates: Sequence[Candidate], places: Sequence[str] = ()) -> list[tuple[int, list[int]]]:
        """Per candidate, tokens of the rendered prompt and of each target, its end token included.

        Args:
            candidates: rows.
            places: of each, for the error.

        Raises:
            ValueError: the chat template does not take a prompt; names the row and the remedy.
        """
        named = zip(candidates, places or [""] * len(candidates), strict=True)
        prompts = [self.template.text(candidate.prompt, place) for candidate, place in named]
        self._warn(candidates)
        pairs = [(prompt, target) for prompt, each in zip(prompts, candidates, strict=True) for target in each.targets]
        self.thinking.update(fault for prompt, target in pairs if (fault := thinking_fault(prompt, target)) is not None)
        counts = iter(self._count_targets([joined(prompt, target) for prompt, target in pairs]))
        return [
            (length, [next(counts) for _ in candidate.targets])
            for length, candidate in zip(map(len, self._encode(prompts)), candidates, strict=True)
        ]

    def _count_targets(self, texts: Sequence[str]) -> list[int]:
        """With one end token each, which a text may have already."""
        eos_id, eos = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        ended = [bool(eos) and text.rstrip().endswith(eos) for text in texts]
        return [
            len(target_ids(lambda part: self._encode([part])[0], text, eos_id, eos)) if has_end else len(ids) + 1
            for text, ids, has_end in zip(texts, self._encode(texts), ended, strict=True)
        ]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])

    def _warn(self, candidates: Sequence[Candidate]) -> None:
        """What is odd about the template, once."""
        if candidates and not self._warned:
            self._warned = True
            for warning in self.template.warnings(candidates[0].prompt):
                logger.warning("%s", warning)


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
