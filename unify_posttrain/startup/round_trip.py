"""Whether the model's tokenizer can write the data: what it makes of a text must be that text again.

A tokenizer that is opened by a class it was not made for loses characters without a word, newlines and spaces first: prompts,
targets and rollouts are then other texts than those in the files, and rewards are those of other answers. So a few prompts and
targets of each split are encoded and decoded before anything starts.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from unify_posttrain.experience.targets import TARGET_COLUMNS, targets_of
from unify_posttrain.text import one_line

logger = logging.getLogger(__name__)

ROWS = 16  # of each split, evenly spread
SHOWN = 40  # characters of a text in the message
EXPECTED = re.compile(r"[^ -~\n]")  # all but the characters that no vocabulary may lack
BESIDE = 8  # of them, what stands before the first difference


def check_round_trip(split: Any, tokenizer: Any) -> None:
    """Encode and decode texts of a few rows of a split.

    Args:
        split: a FusionDataset.
        tokenizer: of the policy.

    Raises:
        ValueError: a text does not come back; names the row, the text and the tokenizer's class.
    """
    frame, foreign = split.dataframe, 0
    columns = [split.prompt_key, *(column for column in TARGET_COLUMNS if column in frame.column_names), "row_id"]
    chosen = range(0, len(frame), max(1, len(frame) // ROWS))
    for row in frame.select_columns(columns).select(chosen):
        for text in _texts(row, split.prompt_key):
            found = lost(tokenizer, text)
            if found is not None:
                raise ValueError(
                    f"{split.place(row['row_id'])}: the tokenizer {type(tokenizer).__name__} of "
                    f"{one_line(str(tokenizer.name_or_path))} does not give back the text that it is given: {found}. It is "
                    "opened by another class than it was made for, or cannot write this text: use another "
                    "actor_rollout_ref.model.path, or the versions of torch and transformers that the model was made with "
                    "(a tiny base model: build it anew)"
                )
            foreign += tokenizer.unk_token_id in _ids(tokenizer, text)
    if foreign:
        logger.warning("%d texts of the data have characters that the tokenizer does not know", foreign)


def lost(tokenizer: Any, text: str) -> str | None:
    """How a text differs from what its tokens say; None if it does not.

    Forms of one character (Unicode's NFKC), spaces at both ends and characters that became the unknown token, which says so itself,
    are no differences. A vocabulary without a space, a newline or a visible character of ASCII is none for text, though.
    """
    ids = _ids(tokenizer, text)
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    given = text
    if tokenizer.unk_token_id in ids:
        given, back = (EXPECTED.sub("", each) for each in (text, back.replace(tokenizer.unk_token, "")))
    given, back = (unicodedata.normalize("NFKC", each).strip() for each in (given, back))
    if given == back:
        return None
    first = next((place for place, pair in enumerate(zip(given, back, strict=False)) if pair[0] != pair[1]), None)
    start = max(0, (min(len(given), len(back)) if first is None else first) - BESIDE)
    return f"{given[start : start + SHOWN]!r} comes back as {back[start : start + SHOWN]!r}"


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # verbose: warnings about long texts


def _texts(row: Mapping[str, Any], prompt_key: str) -> Iterator[str]:
    """What is written in a row: targets, and messages without their template, whose special tokens may swallow spaces beside
    them."""
    for message in row[prompt_key]:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content or () if part.get("text"))
    if any(column in row for column in TARGET_COLUMNS):
        for target in targets_of(row, row["row_id"]):
            yield from target.texts
