"""A neural reward: the logit of a sequence classifier on prompt and response, and the score that is made of it.

    text  = template with {prompt}, {response} and {eos} filled in
    x     = the classifier's one logit on that text
    score = f(scale * x + shift),  f = sigmoid if `sigmoid` else identity

so scale 1, shift 0, no sigmoid is the raw logit. The classifier is an ordinary folder (or hub name) of transformers with one
output, as reward-model trainers save it; it runs without remote code. Who serves it: `unify_posttrain.workers.reward_classifier`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from string import Formatter
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

logger = logging.getLogger(__name__)

NODE = "reward.custom_reward_function.reward_kwargs"
DTYPES = ("float32", "bfloat16", "float16")
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
PLACEHOLDERS = ("prompt", "response", "eos")


@dataclass(frozen=True)
class ClassifierSettings:
    """How the classifier is loaded and run.

    Attributes:
        model_path: folder or hub name.
        max_length: longest text in tokens; a longer one loses its beginning, because response and closing token stand at the end.
        batch_size: texts per forward pass.
        gather_seconds: a forward pass starts when no text has arrived for this long, or when batch_size texts wait.
        dtype: of the weights.
        device: cpu, cuda, or cuda:N. It is shared with the trainer, not reserved: leave it the memory.
    """

    model_path: str
    max_length: int
    batch_size: int
    gather_seconds: float
    dtype: str
    device: str

    def __post_init__(self) -> None:
        if not self.model_path:
            raise ValueError(
                f"{NODE}.model_path={self.model_path}: no reward model; give its folder or hub name "
                "(task=tldr: reward.reward_model.model_path=…)"
            )
        for key in ("max_length", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{NODE}.{key}={getattr(self, key)} must be at least 1")
        if self.gather_seconds < 0:
            raise ValueError(f"{NODE}.gather_seconds={self.gather_seconds} must not be negative")
        if self.dtype not in DTYPES:
            raise ValueError(f"{NODE}.dtype={self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"{NODE}.device={self.device!r}; give cpu, cuda or cuda:N")


@dataclass(frozen=True)
class RewardFormula:
    """What the classifier reads, and what its logit is worth.

    Attributes:
        template: text with {prompt} (contents of the prompt's messages, joined as they are), {response} (decoded, without special
            tokens) and, where wanted, {eos} (the policy's end token if the response ended with it, nothing if it was cut off).
        scale, shift, sigmoid: score = f(scale * logit + shift), f = sigmoid or identity.
    """

    template: str
    scale: float
    shift: float
    sigmoid: bool

    def __post_init__(self) -> None:
        try:
            found = [name for _, name, _, _ in Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise ValueError(f"{NODE}.template={self.template!r}: {error}; a literal brace is written {{{{ or }}}}") from None
        unknown = sorted(set(found) - set(PLACEHOLDERS))
        if unknown or not {"prompt", "response"} <= set(found):
            raise ValueError(
                f"{NODE}.template={self.template!r} must hold {{prompt}} and {{response}}, and may hold {{eos}}; "
                f"unknown: {', '.join(unknown) or 'none'}"
            )
        if not (math.isfinite(self.scale) and math.isfinite(self.shift)) or self.scale == 0:
            raise ValueError(f"{NODE}.scale={self.scale}, shift={self.shift}: both must be finite and scale must not be 0")

    def text(self, prompt: str, response: str, eos: str) -> str:
        """What the classifier reads; values are inserted as they are (braces in them mean nothing)."""
        return self.template.format(prompt=prompt, response=response, eos=eos)

    def score(self, logit: float) -> float:
        """f(scale * logit + shift)."""
        value = self.scale * logit + self.shift
        if not self.sigmoid:
            return value
        # exp of a positive number could overflow
        return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def read_options(options: Mapping[str, Any]) -> tuple[ClassifierSettings, RewardFormula]:
    """The two halves of reward_kwargs.

    Raises:
        ValueError: a key is missing or unknown, or its value makes no sense; names the key and the remedy.
    """
    known = {kind: {field.name for field in fields(kind)} for kind in (ClassifierSettings, RewardFormula)}
    expected = set().union(*known.values())
    if set(options) != expected:
        missing, unknown = sorted(expected - set(options)), sorted(set(options) - expected)
        raise ValueError(f"{NODE}: missing {missing}, unknown {unknown}; give exactly the keys of conf/task/tldr.yaml")
    settings, formula = ({key: options[key] for key in names} for names in known.values())
    return ClassifierSettings(**settings), RewardFormula(**formula)


class RewardClassifier:
    """A sequence classifier with one output, in memory.

    Raises:
        ValueError: the model cannot be loaded, has another number of outputs, is no trained classifier, or is too short for
            max_length; the device is not there.
    """

    def __init__(self, settings: ClassifierSettings) -> None:
        self.settings = settings
        self.where = f"{NODE}.model_path={settings.model_path}"
        self.device = torch.device(settings.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{NODE}.device={settings.device}, but no CUDA device is visible here; set it to cpu")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(settings.model_path, trust_remote_code=False, truncation_side="left")
            # num_labels of a configuration without labels is 2; the weights must have one row all the same.
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                settings.model_path,
                num_labels=1,
                dtype=getattr(torch, settings.dtype),
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.where} cannot be loaded as a sequence classifier with one output: {error}") from error
        if loading["missing_keys"]:
            raise ValueError(
                f"{self.where} lacks {sorted(loading['missing_keys'])[:5]}: not a trained classifier (a language model has no "
                "score head, and a random one rewards noise); give a reward model"
            )
        context = getattr(model.config, "max_position_embeddings", None)
        if context is not None and settings.max_length > context:
            raise ValueError(f"{NODE}.max_length={settings.max_length} exceeds the classifier's context of {context}; lower it")
        self.model = model.to(self.device).eval()
        self.cut_reported = False

    @torch.inference_mode()
    def logits(self, texts: Sequence[str]) -> list[float]:
        """Raw logits of N texts, in their order; they are computed in batches of similar length.

        Raises:
            ValueError: a text without a single token.
        """
        rows = self._encode(texts)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        values = [0.0] * len(rows)
        for start in range(0, len(order), self.settings.batch_size):
            indices = order[start : start + self.settings.batch_size]
            for index, value in zip(indices, self._forward([rows[index] for index in indices]), strict=True):
                values[index] = value
        return values

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        limit = self.settings.max_length
        rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
        empty = [index for index, row in enumerate(rows) if not row]
        if empty:
            raise ValueError(f"{NODE}.template makes an empty text of row {empty[0]} of {len(rows)}; there is nothing to score")
        longest = max(map(len, rows), default=0)
        if longest <= limit:
            return rows
        if not self.cut_reported:
            logger.warning("a text of %d tokens exceeds %s.max_length=%d and loses its beginning", longest, NODE, limit)
            self.cut_reported = True
        return self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]

    def _forward(self, rows: list[list[int]]) -> list[float]:
        pad_id, width = self._pad_id(rows), max(map(len, rows))
        input_ids = torch.full((len(rows), width), pad_id)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = torch.tensor(row)
            attention_mask[index, : len(row)] = 1
        self.model.config.pad_token_id = pad_id
        output = self.model(input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device))
        return output.logits.float().squeeze(-1).tolist()

    def _pad_id(self, rows: list[list[int]]) -> int:
        """A padding id that no text holds. Decoder classifiers read the last token that is *not* it: were it the end token, as in
        many tokenizers, they would read the token before the end instead."""
        used = set().union(*rows)
        own = self.tokenizer.pad_token_id
        if own is not None and own not in used:
            return own
        free = next((token for token in range(self.model.config.vocab_size) if token not in used), None)
        if free is None:
            raise ValueError(
                f"{self.where}: every token of its vocabulary occurs in a batch, none is left for padding; lower "
                f"{NODE}.batch_size={self.settings.batch_size}, or give its tokenizer a pad_token"
            )
        return free
