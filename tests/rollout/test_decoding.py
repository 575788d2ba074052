"""The decoding loop against transformers' own: tokens, log-probabilities, and what rows that share or end may not change."""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from unify_posttrain.rollout import attention
from unify_posttrain.rollout.decoding import _Batch, decode, decode_batch
from unify_posttrain.rollout.masks import GrowingMask
from unify_posttrain.rollout.sampling import SamplingParams

from .plain_decoding import decode_plainly

VOCABULARY, PAD, EOS = 61, 0, (1, 2)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2, intermediate_size=48),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=1, intermediate_size=48),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=48),
    # Windows that forget have transformers' own cache; positions that nobody may pass are the model's own affair.
    "gemma3": Gemma3TextConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=48, head_dim=8, sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
}  # fmt: skip


def model_of(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]), **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)  # far from uniform, so that a wrong position or mask shows
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of("qwen2")


def params(seed: int | None, max_tokens: int = 24, **request: Any) -> SamplingParams:
    return SamplingParams.from_request({"seed": seed, **request}, max_tokens)


def prompts_of(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def held_against_the_plain_one(model: Any, prompts: list[list[int]], requests: list[SamplingParams]) -> list[int]:
    """Lengths of the responses, which are the plain loop's."""
    ours, plain = decode_batch(model, prompts, requests, EOS, PAD), decode_plainly(model, prompts, requests, EOS, PAD)
    for each, (tokens, log_probs) in zip(ours, plain, strict=True):
        assert each.token_ids == tokens
        torch.testing.assert_close(each.log_probs, torch.tensor(log_probs), atol=1e-5, rtol=0)
    return [len(each.token_ids) for each in ours]


GROUPS = [prompt for prompt in prompts_of(7, 7, 7) for _ in range(4)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prompts", [GROUPS, prompts_of(3, 9, 1, 9, 6, 4)], ids=["groups", "unequal"])
def test_tokens_are_those_of_the_plain_loop(name: str, prompts: list[list[int]]) -> None:
    lengths = held_against_the_plain_one(model_of(name), prompts, [params(seed) for seed in range(len(prompts))])
    assert len(set(lengths)) > 1, "rows that leave early are the point"


def test_every_row_has_its_own_parameters(model: Any) -> None:
    kinds = [
        {},
        {"temperature": 0},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.6},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.8},
    ]
    requests = [params(seed, limit, **kind) for seed, kind in enumerate(kinds) for limit in (1, 5, 24)]
    lengths = held_against_the_plain_one(model, prompts_of(*[1 + row % 7 for row in range(len(requests))]), requests)
    assert all(lengths[row] == 1 for row in range(0, len(lengths), 3))


def test_all_greedy(model: Any) -> None:
    held_against_the_plain_one(model, prompts_of(5, 8, 2), [params(None, temperature=0)] * 3)


def test_a_row_does_not_depend_on_its_batch(model: Any) -> None:
    prompts = prompts_of(5, 3, 9, 5, 7)
    together = decode_batch(model, prompts, [params(seed) for seed in range(5)], EOS, PAD)
    for row in (3, 0, 2):
        (alone,) = decode_batch(model, [prompts[row]], [params(row)], EOS, PAD)
        assert alone.token_ids == together[row].token_ids
        torch.testing.assert_close(alone.log_probs, together[row].log_probs, atol=1e-5, rtol=0)


def test_it_repeats_to_the_last_bit(model: Any) -> None:
    first, again = (decode_batch(model, GROUPS, [params(seed) for seed in range(12)], EOS, PAD) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.token_ids == other.token_ids and torch.equal(one.log_probs, other.log_probs)


@pytest.mark.parametrize("portion", [1, 3, 12])
def test_portions_are_the_batch_in_parts(model: Any, portion: int) -> None:
    requests = [params(seed) for seed in range(12)]
    whole = decode_batch(model, GROUPS, requests, EOS, PAD)
    parts = list(decode(model, GROUPS, requests, EOS, PAD, portion))
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(12))
    assert all(len(part.rows) >= portion for part in parts[:-1]) and (len(parts) > 1) == (portion < 12)
    assert [int(part.lengths.max()) for part in parts] == sorted(int(part.lengths.max()) for part in parts), "as they end"
    for part in parts:
        assert part.rows.tolist() == sorted(part.rows.tolist())
        for row, length, tokens, log_probs in zip(*(each for each in vars(part).values()), strict=True):
            assert tokens[:length].tolist() == whole[row].token_ids
            assert torch.equal(log_probs[:length], whole[row].log_probs)


def test_a_shared_prompt_is_prefilled_once_and_rows_that_end_leave(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    forward = model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    counting.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model, "forward", counting)
    lengths = [len(each.token_ids) for each in decode_batch(model, GROUPS, [params(seed) for seed in range(12)], EOS, PAD)]
    # With step s those run that have more than s tokens.
    assert seen == [(3, 7), *((sum(length > step for length in lengths), 1) for step in range(1, max(lengths)))]


@pytest.mark.parametrize(("name", "whole"), [("qwen2", True), ("llama", True), ("gemma3", False), ("bloom", False)])
def test_masks_are_made_here_where_the_model_takes_them(name: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unequal prompts need masks. A window that forgets needs another mask in each kind of layer."""
    given: list[int] = []
    plain = GrowingMask.with_another

    def watched(self: GrowingMask) -> torch.Tensor:
        mask = plain(self)
        given.append(mask.dim())
        return mask

    monkeypatch.setattr(GrowingMask, "with_another", watched)
    params = [SamplingParams(1.0, 1.0, -1, 5, seed) for seed in range(3)]
    decode_batch(model_of(name), [[7, 8, 9], [7, 8], [7]], params, EOS, PAD)
    assert set(given) == {4 if whole else 2}
    given.clear()
    decode_batch(model_of(name), [[7, 8], [8, 7], [7, 7]], params, EOS, PAD)
    assert not given, "without padding everything is read"


def test_the_room_is_taken_once(model: Any) -> None:
    batch = _Batch.prefilled(model, GROUPS, room=5, pad_id=PAD)
    places = [layer.keys.data_ptr() for layer in batch.cache.layers]
    for rows in (12, 11, 10, 9):
        batch.step(torch.full((rows,), 5))
        batch.keep(torch.arange(rows - 1))
    assert [layer.keys.data_ptr() for layer in batch.cache.layers] == places


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (4, 1)])
def test_attention_of_one_query_is_torchs(mask: str, heads: int, shared: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, heads, 1, 8), torch.randn(3, shared, 11, 8), torch.randn(3, shared, 11, 8)
    given = torch.ones(3, 1, 1, 11, dtype=torch.bool)
    given[1, ..., :4] = False
    masks = {"none": None, "bool": given, "added": torch.zeros(given.shape).masked_fill(~given, float("-inf"))}
    module = torch.nn.Module()
    module.num_key_value_groups = heads // shared
    ours, _ = attention.one_query_attention(module, query, key, value, masks[mask], scaling=0.3)
    theirs, _ = attention.sdpa_attention_forward(module, query, key, value, masks[mask], scaling=0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_attention_is_the_decodings_own(model: Any) -> None:
    """Also between two portions, and where it was not sdpa before nothing changes."""
    for _ in decode(model, GROUPS, [params(seed) for seed in range(12)], EOS, PAD, portion=2):
        assert model.config._attn_implementation == "sdpa"
    eager = model_of("qwen2", attn_implementation="eager")
    with attention.fast_attention(eager):
        assert eager.config._attn_implementation == "eager"
    with attention.fast_attention(model):
        assert model.config._attn_implementation == attention.NAME
