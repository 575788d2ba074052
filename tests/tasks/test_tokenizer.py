"""The tokenizer of the tiny base model and its chat template, as Hugging Face classes load them."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from unify_posttrain.tasks.tokenizer import CHAT_TOKENS, build_tokenizer

PRINTABLE = "\n" + "".join(chr(code) for code in range(32, 127))
USER = {"role": "user", "content": "1+2="}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(64).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


# --- tokenizer -------------------------------------------------------------------------------------------------------


def test_special_tokens_survive_saving(tokenizer: PreTrainedTokenizerFast) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer.padding_side == "left" and tokenizer.model_max_length == 64
    assert set(tokenizer("12")) == {"input_ids", "attention_mask"}  # what generate() accepts


def test_every_printable_character_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert set(PRINTABLE) == set(string.printable) - set("\t\r\x0b\x0c")
    ids = tokenizer(PRINTABLE, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(set(ids)) == 96 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == PRINTABLE


@given(text=st.text(alphabet=PRINTABLE))
def test_decoding_inverts_encoding(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    padded = [tokenizer.pad_token_id, *ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
    if "<|" not in text:  # a special token written out is that token, as in every Hugging Face tokenizer
        assert len(ids) == len(text)
        assert tokenizer.decode(padded, skip_special_tokens=True) == text


def test_spaces_before_punctuation_survive(tokenizer: PreTrainedTokenizerFast) -> None:
    text = " a , b . c ? n't  's "
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_other_characters_are_unknown_one_by_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("1\u0661\u06622")["input_ids"].count(tokenizer.unk_token_id) == 2


# --- chat template ---------------------------------------------------------------------------------------------------


def test_chat_template_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    def render(messages: list, **options: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    assert render([USER]) == render([USER], add_generation_prompt=False) == "<|user|>1+2=<|end|>"
    assert render([USER], add_generation_prompt=True) == "<|user|>1+2=<|end|><|assistant|>"
    assert render([USER, USER]) == "<|user|>1+2=<|end|><|user|>1+2=<|end|>"
    assert render([{"role": "user", "content": ""}]) == "<|user|><|end|>"
    system, answer = {"role": "system", "content": "add"}, {"role": "assistant", "content": "3\n"}
    # a line break at the end of a message belongs to the message
    assert render([system, USER, answer]) == "<|system|>add<|end|><|user|>1+2=<|end|><|assistant|>3\n<|end|>"


def test_chat_template_tokenizes_one_token_per_mark(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.apply_chat_template([USER], add_generation_prompt=True)
    assert len(ids) == len("1+2=") + CHAT_TOKENS
    # how verl finds the length of a system prompt: one message against two
    empty = {"role": "user", "content": ""}
    assert len(tokenizer.apply_chat_template([empty] * 2)) == 2 * len(tokenizer.apply_chat_template([empty]))


def test_chat_template_refuses_unknown_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role robot; use one of system, user, assistant, tool"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "1"}])


def test_written_byte_level(tokenizer: PreTrainedTokenizerFast) -> None:
    """As transformers 5 reads the folder of any Qwen2 model, whose tokenizer it replaces by Qwen's own class."""
    assert tokenizer.convert_ids_to_tokens(tokenizer("a \n", add_special_tokens=False)["input_ids"]) == ["a", "Ġ", "Ċ"]
    assert [tokenizer.convert_tokens_to_ids(each) for each in ("Ċ", "Ġ", "!", "~")] == [7, 8, 9, 102]  # where they always stood
