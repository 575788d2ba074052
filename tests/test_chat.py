"""Where prompt and target meet: templates that refuse, first and end tokens, thinking blocks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.chat_models import chat_tokenizer
from unify_posttrain.chat import ChatTemplate, TemplateRefusedError, joined, target_ids, thinking_fault

USER = {"role": "user", "content": "1+1="}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "2"}


def template(form: str, options: dict | None = None, **changes: Any) -> ChatTemplate:
    return ChatTemplate(chat_tokenizer(form, **changes), options or {})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([SYSTEM, USER], r"\(roles: system, user\): System role not supported; prepare the data with prepare\.task\.system=none"),
        ([USER, USER], r"\(roles: user, user\): Conversation roles must alternate.*; join messages of one role"),
        ([USER, ASSISTANT, ASSISTANT], "join messages of one role that follow each other"),
    ],
)
def test_a_refusal_names_template_row_reason_and_remedy(messages: list[dict], words: str) -> None:
    gemma = template("gemma")
    for ask in (gemma.text, gemma.ids):
        with pytest.raises(TemplateRefusedError, match=rf"^row 3: the chat template of .*{words}") as refused:
            ask(messages, "row 3")
        assert "actor_rollout_ref.model.custom_chat_template=…" in str(refused.value) and "\n" not in str(refused.value)


def test_any_error_of_a_template_is_a_refusal() -> None:
    with pytest.raises(TemplateRefusedError, match=r"^the chat template of .* refuses the prompt \(roles: user\): .*None"):
        template("qwen3").text([{"role": "user", "content": None}])


def test_first_tokens_stand_once_and_are_neither_lost_nor_doubled() -> None:
    for form in ("gemma", "llama"):
        plain = template(form)
        assert plain.ids([USER])[:2].count(plain.tokenizer.bos_token_id) == 1
        assert not any("first token" in warning for warning in plain.warnings([USER]))
        doubled = template(form, template="{{ bos_token }}" + str(plain.tokenizer.chat_template))
        assert any(f"writes the first token {plain.tokenizer.bos_token} twice" in each for each in doubled.warnings([USER]))
        lost = template(form, template=str(plain.tokenizer.chat_template).replace("{{ bos_token }}", ""))
        assert any("writes no first token" in each for each in lost.warnings([USER]))
    assert list(template("qwen3").warnings([USER])) == []


def test_a_turn_that_ends_with_another_token_than_the_tokenizers_is_warned_of() -> None:
    assert (template("gemma").turn_end(), template("qwen3").turn_end()) == ("<end_of_turn>", "<|im_end|>")
    (warning,) = template("gemma").warnings([USER])
    assert "ends a turn with <end_of_turn>, and the end token of the tokenizer is <eos>" in warning
    (warning,) = template("qwen3", end="<|endoftext|>").warnings([USER])
    assert "<|im_end|>" in warning and "<|endoftext|>" in warning
    assert list(template("llama").warnings([USER])) == []
    bare = template("qwen3", template="{% for message in messages %}{{ message['content'] }}{% endfor %}")
    assert bare.turn_end() is None and list(bare.warnings([USER])) == []


SPACES = ["", "\n", "\r\n", " ", "\n\n", "\n \r\n"]


@pytest.mark.parametrize(("before", "given", "own", "lead"), itertools.product(["", "\n"], SPACES, SPACES, ["", "\n", "\r\n", " "]))
def test_prompt_and_target_have_one_opening_whatever_stands_around(before: str, given: str, own: str, lead: str) -> None:
    prompt, target = f"Q{before}<think>{given}", f"{lead}<think>{own}So.</think>2"
    whole = prompt + joined(prompt, target)
    assert whole.count("<think>") == 1 and whole.endswith("So.</think>2")
    assert joined("Q", target) == target  # nothing is opened: the target's own stays
    assert joined(prompt, "So.</think>2") == "So.</think>2"
    # The prompt's white space stands; of the target's stays what goes on from there.
    given, own, between = (space.replace("\r\n", "\n") for space in (given, own, whole.partition("<think>")[2].partition("So.")[0]))
    assert between == (own if own.startswith(given) else given)


def test_thinking_that_does_not_fit_the_template_has_a_name() -> None:
    closed = template("qwen3", {"enable_thinking": False}).text([USER])
    default = template("qwen3").text([USER])
    assert thinking_fault(closed, "<think>\nSo.</think>2") == "closed"
    assert thinking_fault(closed, "So.</think>2") == "closed"
    assert thinking_fault(closed, "2") is None and thinking_fault(default, "<think>So.</think>2") is None
    assert thinking_fault(f"{default}<think>\n", "2") == "open"
    assert thinking_fault(default, "So.</think>2") == "unopened"
    assert thinking_fault(default, "<think>\n<think>\nSo.</think>2") == "doubled"


@pytest.mark.parametrize("form", ["gemma", "qwen3", "llama"])
@pytest.mark.parametrize("end", ["", "{eos}", "{eos}\n", "{eos}{eos}", "\n"])
def test_a_target_ends_with_one_end_token(form: str, end: str) -> None:
    tokenizer = chat_tokenizer(form)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    text = "2" + end.format(eos=tokenizer.eos_token)
    for known in (tokenizer.eos_token, None):
        ids = target_ids(encode, text, tokenizer.eos_token_id, known)
        assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
