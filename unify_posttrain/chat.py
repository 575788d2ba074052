"""Prompts as text and tokens: how a chat template is asked, what its refusal says, and what stands where prompt and target meet.

Training, evaluation and the length counter of `prepare` all render prompts here, so that a prompt is the same tokens, or the same
error, everywhere. verl's own renderer answers a refusal by rendering again behind an empty message of the user and cutting that
off: the first token (BOS) goes with it, and a template without system turns gets one. So a refusal ends the command instead, before
anything is started.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from unify_posttrain.text import one_line

THINK, THINK_END = "<think>", "</think>"
NOT_OPTIONS = frozenset({"tokenize", "return_dict", "return_tensors"})  # ours to decide; verl leaves them out of its counts, too
SHOWN = 200  # characters of a template's own words in a message

_OPENING = re.compile(rf"\s*{THINK}(\s*)")
_TWICE = re.compile(rf"\s*{THINK}\s*{THINK}")
_SPECIAL = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")  # how special tokens are written
_PROBE = "0123456789"

Messages = Sequence[Mapping[str, Any]]


class TemplateRefusedError(ValueError):
    """A chat template that does not take the messages of a prompt; names template, row and remedy."""


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a tokenizer or processor, with the options it is called with.

    Attributes:
        tokenizer: of Hugging Face, with a chat template.
        options: `data.apply_chat_template_kwargs`.
        key: of the configuration, that another template is given by.
        advice: what a system message that is refused can be helped by, beside `key`.
    """

    tokenizer: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = "actor_rollout_ref.model.custom_chat_template"
    advice: str = "prepare the data with prepare.task.system=none, or put the system text into the user's message"

    @property
    def name(self) -> str:
        """Of the model that the template comes with, for messages."""
        inner = getattr(self.tokenizer, "tokenizer", self.tokenizer)  # a processor holds one
        return f"the chat template of {one_line(getattr(inner, 'name_or_path', '') or type(inner).__name__)}"

    def text(self, messages: Messages, where: str = "") -> str:
        """The rendered prompt, with what opens the answer.

        Args:
            messages: {role, content} each.
            where: the row, for the error.

        Raises:
            TemplateRefusedError: the template does not take the messages.
        """
        return str(self._ask(messages, where, tokenize=False, add_generation_prompt=True))

    def ids(self, messages: Messages, where: str = "") -> list[int]:
        """The same as token ids. Nothing is added around them: a first token stands there if the template writes one."""
        found = self._ask(messages, where, tokenize=True, add_generation_prompt=True)
        found = found[0] if found and not isinstance(found[0], int) else found  # some processors answer with a batch of one
        return [int(token) for token in found]

    def _ask(self, messages: Messages, where: str, **how: Any) -> Any:
        options = {key: value for key, value in self.options.items() if key not in NOT_OPTIONS}
        plain = [dict(message) for message in messages]
        try:
            return self.tokenizer.apply_chat_template(plain, return_dict=False, **options, **how)
        except Exception as error:  # a template is a program of its author: its own refusals, and any error of an operation in it
            raise TemplateRefusedError(self._refusal(plain, where, error)) from error

    def _refusal(self, messages: Messages, where: str, error: Exception) -> str:
        roles = [str(message.get("role")) for message in messages]
        said = one_line(" ".join(str(error).split())[:SHOWN]) or type(error).__name__
        repeated = any(first == second for first, second in pairwise(roles))
        remedies = [
            *([self.advice] if "system" in roles else []),
            *(["join messages of one role that follow each other"] if repeated else []),
            f"{'or ' if 'system' in roles or repeated else ''}give a template that takes such messages: {self.key}=…",
        ]
        place = f"{where}: " if where else ""
        return f"{place}{self.name} refuses the prompt (roles: {', '.join(roles)}): {said}; {', '.join(remedies)}"

    def turn_end(self) -> str | None:
        """The token that the template writes behind a message of the assistant; None: it writes none, or takes no such message."""
        messages = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self._ask(messages, "", tokenize=False, add_generation_prompt=False)
        except TemplateRefusedError:
            return None
        _, found, after = str(text).rpartition(_PROBE)
        after = after.lstrip()
        if not found or not after:
            return None
        end = getattr(self.tokenizer, "eos_token", None)
        if end and after.startswith(end):
            return str(end)
        written = _SPECIAL.match(after)
        return None if written is None else written[0]

    def warnings(self, messages: Messages) -> Iterator[str]:
        """What is odd about the template, in sentences: its first token, and the token that ends a turn.

        Args:
            messages: of a prompt that the template takes.
        """
        end, eos = self.turn_end(), getattr(self.tokenizer, "eos_token", None)
        if end is not None and end != eos:
            yield (
                f"{self.name} ends a turn with {end}, and the end token of the tokenizer is {eos}: demonstrations are taught to "
                f"end with {eos}, and a response ends at {end} only if generation_config.json lists it; set eos_token of "
                f"tokenizer_config.json to {end}, or give a template that ends a turn with {eos}: {self.key}=…"
            )
        bos = getattr(self.tokenizer, "bos_token_id", None)
        if bos is None:
            return
        ids = self.ids(messages)
        if ids[:2] == [bos, bos]:
            yield (
                f"{self.name} writes the first token {self.tokenizer.bos_token} twice; take one out of the template, or give "
                f"another: {self.key}=…"
            )
        elif ids[:1] != [bos] and self.tokenizer(_PROBE)["input_ids"][:1] == [bos]:
            yield (
                f"{self.name} writes no first token, and the tokenizer begins every text with {self.tokenizer.bos_token}: prompts "
                "are rendered without it, in training as in evaluation; begin the template with {{- bos_token -}} if the model "
                f"was trained with it: {self.key}=…"
            )


def joined(prompt: str, target: str) -> str:
    """A target without the `<think>` that the prompt has opened already, so that the two hold one together.

    The white space behind the tag is the prompt's; what the target has beyond it stays. Line ends of both kinds count as one.

    >>> joined("Q <think>\\n", "\\n<think>\\r\\nSo"), joined("Q <think>", "<think>\\nSo"), joined("Q", "<think>\\nSo")
    ('So', '\\nSo', '<think>\\nSo')
    """
    if not opens_thinking(prompt):
        return target
    opening = _OPENING.match(target)
    if opening is None:
        return target
    given, own = _line_ends(prompt[len(prompt.rstrip()) :]), _line_ends(opening[1])
    return f"{own[len(given) :] if own.startswith(given) else ''}{target[opening.end() :]}"


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends with an open thinking block."""
    return prompt.rstrip().endswith(THINK)


def thinking_fault(prompt: str, target: str) -> str | None:
    """What is wrong with the thinking blocks of a prompt and its target, if anything: one of the keys of `THINKING_FAULTS`."""
    if _TWICE.match(target):
        return "doubled"
    if opens_thinking(prompt):
        return None if THINK_END in target else "open"
    if THINK_END not in target and not _OPENING.match(target):
        return None
    if prompt.rstrip().endswith(THINK_END):
        return "closed"
    begin, end = target.find(THINK), target.find(THINK_END)
    return "unopened" if end >= 0 and (begin < 0 or end < begin) else None


# Fault -> (what the targets do, remedy).
THINKING_FAULTS = {
    "closed": (
        "think, but the chat template closes thinking before the response (<think>…</think>): they teach to think after that",
        "set data.apply_chat_template_kwargs so that it does not (+data.apply_chat_template_kwargs.enable_thinking=true), or take "
        "the thinking out of the targets",
    ),
    "open": (
        "never end the thinking that the chat template opens (no </think>)",
        "give targets that think, or a template that does not open it: actor_rollout_ref.model.custom_chat_template=…",
    ),
    "doubled": ("begin with <think> twice", "take one out of the targets"),
    "unopened": (
        "end a thinking block (</think>) that neither they nor the chat template open",
        "put <think> at their begin, or give a template that opens it: actor_rollout_ref.model.custom_chat_template=…",
    ),
}


def _line_ends(space: str) -> str:
    return space.replace("\r\n", "\n").replace("\r", "\n")


def target_ids(encode: Callable[[str], list[int]], text: str, eos_id: int, eos_text: str | None = None) -> list[int]:
    """Token ids of a complete target: with one end token, whether the text has none, one or several at its end.

    Args:
        encode: text -> token ids, adding none.
        text: the target.
        eos_id: the end token.
        eos_text: how it is written; None: not known. Where a tokenizer has one token for the end and for what it does not know,
            the text tells the two apart.
    """
    ids, bare = encode(text), text.rstrip()
    if eos_text is not None and not bare.endswith(eos_text):
        return [*ids, eos_id]
    if bare != text and eos_id in ids:  # a line break after the end token belongs to no one
        shorter = encode(bare)
        ids = shorter if shorter[-1:] == [eos_id] else ids
    length = len(ids)
    while length and ids[length - 1] == eos_id:
        length -= 1
    return [*ids[:length], eos_id]
