"""Tokenizers of one token per character with chat templates in the forms of well-known models, written for the tests."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

# No system turn, roles alternate, the turn ends with another token than the tokenizer's.
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% set name = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + name + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# enable_thinking=false closes the thinking block before the answer.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
FORMS: dict[str, tuple[str, str | None, str, tuple[str, ...]]] = {  # template, first token, end token, other special tokens
    "gemma": (GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "qwen3": (QWEN3, None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "llama": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>")),
}


def chat_tokenizer(form: str, template: str | None = None, end: str | None = None) -> Any:
    """A tokenizer of a form of `FORMS`; one with a first token puts it before every text, as those models' own do."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    own, begin, eos, others = FORMS[form]
    special = ["<pad>", "<unk>", *([begin] if begin else []), eos, *others]
    characters = "\n\r" + "".join(sorted(set(string.printable) - set(string.whitespace) | {" "}))
    vocabulary = {token: number for number, token in enumerate([*special, *characters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=False))
    core.decoder = decoders.Fuse()
    if begin:
        core.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=begin,
        eos_token=end or eos,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(others),
        chat_template=own if template is None else template,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def save_chat_model(folder: Path, form: str, **changes: Any) -> Path:
    """A folder that starts as a model does: the tokenizer, and a random Qwen2 of one layer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = chat_tokenizer(form, **changes)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder
