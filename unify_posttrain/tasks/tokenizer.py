"""Tokenizer of the tiny base model: one token per character, one per special token, and a chat template of these.

Written byte-level, as Qwen's own tokenizer is: a space is Ġ and a newline Ċ in its vocabulary. From version 5 on transformers opens
the folder of any Qwen2 model with its Qwen2 tokenizer, whatever the folder says, and that one reads a vocabulary in this way.
"""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unk|>"
ROLES = ("system", "user", "assistant", "tool")
CHARACTERS = "\n" + "".join(sorted(set(string.printable) - set(string.whitespace) | {" "}))
BYTE_LEVEL = {
    "\n": "Ċ",
    " ": "Ġ",
}  # how bytes that are no visible character are written; the visible ones of ASCII stand for themselves
FOREIGN = "\0"  # any other character on its way to <|unk|>: a character of several bytes would be as many tokens

CHAT_TOKENS = 3  # beside the question, in the prompt of one message: user, end, assistant
# One token opens a message and one closes it, so the longest prompt stays as short as the problem allows.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in " + str(list(ROLES)) + " -%}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ '; use one of " + ", ".join(ROLES) + "') -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ (message['content'] or '') ~ '" + END + "' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character or newline, and the special tokens; other characters become <|unk|>."""
    special = [PAD, END, UNKNOWN, *(f"<|{role}|>" for role in ROLES)]
    vocabulary = {token: index for index, token in enumerate([*special, *(BYTE_LEVEL.get(each, each) for each in CHARACTERS)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    core.normalizer = normalizers.Replace(Regex(r"[^\n -~]"), FOREIGN)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=special[3:],
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],  # the default adds token_type_ids, which generate() refuses
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,  # the clean-up would eat spaces before punctuation
    )
