"""A tokenizer that loses characters of the data is refused before anything starts, and the sound ones are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.chat_models import FORMS, chat_tokenizer
from unify_posttrain.startup.round_trip import check_round_trip, lost
from unify_posttrain.tasks.tokenizer import CHARACTERS, build_tokenizer

QUESTION = "Add:\n 27 + 38 = "


def misread() -> PreTrainedTokenizerFast:
    """A character vocabulary (a space is a space) opened by a byte-level class, as transformers 5 opens every Qwen2 folder."""
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(["<pad>", *CHARACTERS])}, merges=[]))
    core.normalizer, core.decoder = normalizers.NFC(), decoders.ByteLevel()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


def split(*rows: dict[str, Any]) -> Any:
    plain = [
        {"prompt": [{"role": "user", "content": "1"}], "target": None, "row_id": number, **row} for number, row in enumerate(rows)
    ]
    return SimpleNamespace(
        dataframe=Dataset.from_list(plain), prompt_key="prompt", place=lambda row_id: f"data file a, row {row_id}"
    )


def test_spaces_and_newlines_that_are_lost_are_named() -> None:
    with pytest.raises(ValueError, match=r"data file a, row 1: the tokenizer \w+ .*'Add:\\n 27") as caught:
        check_round_trip(split({}, {"prompt": [{"role": "user", "content": QUESTION}]}), misread())
    assert "comes back as 'Add:27+38='" in str(caught.value) and "model.path" in str(caught.value)


def test_targets_are_looked_at() -> None:
    with pytest.raises(ValueError, match=r"row 0: .*'so 5' comes back as 'so5'"):
        check_round_trip(split({"target": "so 5"}), misread())


def test_only_a_few_rows_of_many_are_encoded() -> None:
    asked: list[str] = []

    class Counting:
        unk_token_id, name_or_path = None, "x"

        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            asked.append(text)
            return {"input_ids": [text]}

        def decode(self, ids: list[Any], **_: Any) -> str:
            return ids[0]

    check_round_trip(split(*({"prompt": [{"role": "user", "content": str(number)}]} for number in range(400))), Counting())
    assert len(set(asked)) <= 17 and {"0", "25", "375"} <= set(asked)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_sound_tokenizers_pass(form: str) -> None:
    assert lost(chat_tokenizer(form), QUESTION) is None  # also one that puts a first token before every text
    assert lost(build_tokenizer(64), QUESTION) is None


def test_foreign_characters_are_said_and_do_not_hide_a_lost_space(caplog: pytest.LogCaptureFixture) -> None:
    check_round_trip(split({"target": "a\tb é 日"}), build_tokenizer(64))
    assert "1 texts of the data have characters that the tokenizer does not know" in caplog.text
    core = Tokenizer(models.BPE(vocab={"<unk>": 0, "a": 1, "b": 2}, merges=[], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    blind = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert lost(blind, "aé b") == "'a b' comes back as 'ab'"


def test_parts_of_a_message_beside_text_are_left_out() -> None:
    content = [{"type": "image", "text": None}, {"type": "text", "text": "a b"}]
    with pytest.raises(ValueError, match="'a b' comes back as 'ab'"):
        check_round_trip(split({"prompt": [{"role": "user", "content": content}]}), misread())
