"""System prompts and question templates; their texts live in conf/prepare/common.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unify_posttrain.preparation.options import Options
from unify_posttrain.preparation.rows import Message

KEEP, NONE = "keep", "none"


@dataclass(frozen=True)
class PromptStyle:
    """What is done to the messages of a prompt.

    Attributes:
        system: None: nothing; "": the system message is removed; any other text becomes the system message.
        fill_only: the text is used only where a row has no system message of its own.
        template: None, or a text with `{question}`, the last user message.
    """

    system: str | None
    fill_only: bool
    template: str | None

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in this style; the input is left alone."""
        has_system = messages[0]["role"] == "system"
        result = [dict(message) for message in messages]
        if self.template is not None:
            question = next((message for message in reversed(result) if message["role"] == "user"), result[-1])
            question["content"] = fill(self.template, question=question["content"])
        if self.system is None or (self.fill_only and has_system):
            return result
        rest = result[1:] if has_system else result
        return [{"role": "system", "content": self.system}, *rest] if self.system else rest


def prompt_style(options: Options) -> PromptStyle:
    """The style that `system` and `template` name.

    `system`: `keep`; `none` (the released code's `data.drop_system`); a name in `prompts.system`, used where a row has no system
    message; or a text of several words, used for every row. `template`: null or `keep`; a name in `prompts.template`; or a text
    that contains `{question}`.

    Raises:
        ValueError: an unknown name, or a template without `{question}`.
    """
    template = resolve_template("template", options.template, options.prompts, ("question",))
    if options.system in (KEEP, NONE):
        return PromptStyle(None if options.system == KEEP else "", False, template)
    known = options.prompts.get("system", {})
    if options.system in known:
        return PromptStyle(known[options.system], True, template)
    if not re.search(r"\s", options.system.strip()):  # a typing error must not become a system prompt
        raise ValueError(
            f"prepare.task.system={options.system!r}: choose one of {', '.join([KEEP, NONE, *sorted(known)])}, or give a text of "
            "several words"
        )
    return PromptStyle(options.system, False, template)


def resolve_template(key: str, value: str | None, prompts: Mapping[str, Mapping[str, str]], parts: Sequence[str]) -> str | None:
    """The template that `prepare.task.<key>` names or is; None for null and `keep`.

    Raises:
        ValueError: a text that lacks one of ``parts`` in braces, or an unknown name.
    """
    if value is None or value == KEEP:
        return None
    known = prompts.get("template", {})
    found = known.get(value, value)
    lacking = [f"{{{part}}}" for part in parts if f"{{{part}}}" not in found]
    if lacking:
        raise ValueError(
            f"prepare.task.{key}={value!r}: choose one of {', '.join([KEEP, *sorted(known)])}, or give a text that contains "
            f"{' and '.join(lacking)}"
        )
    return found


def fill(template: str, **parts: str) -> str:
    """Put the parts into their places; braces inside a part, or of another name, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: parts.get(match[1], match[0]), template)
