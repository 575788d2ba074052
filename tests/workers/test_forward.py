"""The chunked output head against verl's own forward pass: the same numbers and gradients, for less. test_packed.py packs rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import verl.utils.ulysses as ulysses
from transformers import Gemma2Config, Gemma2ForCausalLM
from verl import DataProto

from tests.ranks import run_ranks
from unify_posttrain.workers.forward import ChunkedForward
from unify_posttrain.workers.output_head import LogProbHead, labels_and_wanted, output_head

from .actor_kit import PROMPT, RESPONSE, VOCABULARY, gradient_distance, make_actor, make_batch, make_model, start_group

TOLERANCE = 1e-6
CASES = {  # likelihood and policy gradient, KL, entropy bonus; hints outside response_mask; entropies as weights
    "hpt": ("algorithm=hpt", "fusion.clip=ppo", "actor_rollout_ref.actor.use_kl_loss=true"),
    "uft": ("algorithm=uft",),
    "srft": ("algorithm=srft",),
    "sft": ("algorithm=sft",),
}


def batch_of(rows: int = 10) -> DataProto:
    batch = make_batch(rows=rows, demonstrations=4, hints=3, padding=1)
    batch.meta_info["mini_batches"] = 2
    return batch


def update(chunk: int | None, *flags: str, batch: DataProto | None = None, module=None):
    actor = make_actor(*flags, f"fusion.logits_chunk={'null' if chunk is None else chunk}", module=module)
    metrics = actor.update_policy(batch_of() if batch is None else batch)
    return actor.gradients, metrics


def assert_equal(mine, reference) -> None:
    for one, other in zip(mine[0], reference[0], strict=True):
        assert sorted(one) == sorted(other)
        assert gradient_distance(one, other) < TOLERANCE
    assert sorted(mine[1]) == sorted(reference[1])
    for key, value in reference[1].items():
        assert mine[1][key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_metrics_are_those_of_verls_forward(name) -> None:
    reference = update(None, *CASES[name])
    assert all(sum(g.abs().sum() for g in step.values()) > 0 for step in reference[0])
    for chunk in (1, 7, 1000):
        assert_equal(update(chunk, *CASES[name]), reference)


def test_temperature_divides_logits_once() -> None:
    def tempered(chunk: int | None):
        batch = batch_of()
        batch.meta_info["temperature"] = 0.6
        return update(chunk, *CASES["hpt"], batch=batch)

    assert_equal(tempered(5), tempered(None))
    assert gradient_distance(tempered(5)[0][0], update(5, *CASES["hpt"])[0][0]) > 1e-2


def test_gradients_reach_a_tied_output_head() -> None:
    def tied():
        module = make_model()
        module.lm_head.weight = module.model.embed_tokens.weight
        return module

    assert_equal(update(3, *CASES["hpt"], module=tied()), update(None, *CASES["hpt"], module=tied()))


def request(batch: DataProto, **meta: object) -> DataProto:
    batch.meta_info = {"micro_batch_size": 3, "use_dynamic_bsz": False, "temperature": 1.0, **meta}
    return batch


def test_log_prob_stage_gives_attended_response_tokens() -> None:
    """verl's stage knows no response_mask: hints and masked rows are computed, prompts and padding are not."""
    batch = make_batch(rows=6, demonstrations=2, hints=2, padding=1)
    reference = make_actor("algorithm=hpt").compute_log_prob(request(batch), calculate_entropy=True)
    mine = make_actor("algorithm=hpt", "fusion.logits_chunk=4").compute_log_prob(request(batch), calculate_entropy=True)
    attended = batch.batch["attention_mask"][:, PROMPT:].bool()
    for name in ("log_probs", "entropys"):
        assert mine[name].dtype == torch.float32
        torch.testing.assert_close(mine[name][attended], reference[name][attended], rtol=1e-5, atol=1e-6)
        assert bool((mine[name][~attended] == 0).all())


@pytest.mark.parametrize("chunk", ["null", "4"])
def test_entropies_nobody_reads_are_not_computed(chunk, monkeypatch) -> None:
    actor = make_actor("algorithm=hpt", f"fusion.logits_chunk={chunk}")
    asked = []
    original = ChunkedForward._forward_micro_batch

    def spy(self, micro_batch, temperature, calculate_entropy=False):
        asked.append(calculate_entropy)
        return original(self, micro_batch, temperature, calculate_entropy)

    monkeypatch.setattr(ChunkedForward, "_forward_micro_batch", spy)
    batch = make_batch(rows=3, demonstrations=1)
    outputs = actor.compute_log_prob(request(batch, calculate_entropy=False), calculate_entropy=True)
    assert asked == [False] and torch.equal(outputs["entropys"], torch.zeros(3, RESPONSE))
    assert bool((actor.compute_log_prob(request(batch), calculate_entropy=True)["entropys"] > 0).any())
    assert asked == [False, True]


def test_only_tokens_that_are_read_are_wanted() -> None:
    """Prompt of 2, response of 3; row 1 starts with a hint and its last token is padding."""
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]),
        "responses": torch.tensor([[3, 4, 5], [8, 9, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    }
    labels, wanted = labels_and_wanted(batch)
    assert wanted.tolist() == [[False, True, True, True, False], [False, True, True, False, False]]
    assert labels[wanted].tolist() == [3, 4, 5, 8, 9]  # a position's label is the token after it
    batch["response_mask"] = torch.tensor([[0, 1, 1], [0, 1, 0]])
    labels, wanted = labels_and_wanted(batch)
    assert labels[wanted].tolist() == [4, 5, 9]
    labels, wanted = labels_and_wanted({**batch, "prefix_mask": torch.tensor([[0, 0, 0], [1, 0, 0]])})
    assert labels[wanted].tolist() == [4, 5, 8, 9]


# Layouts


def test_labels_do_not_break_at_the_border_of_two_ulysses_ranks(monkeypatch) -> None:
    """Five attended tokens 1..5 on two ranks: 1 2 3 | 4 5 and a zero. The label of rank 0's last token is rank 1's first."""
    actor = make_actor("algorithm=hpt", "fusion.logits_chunk=4")
    actor.use_remove_padding, actor.use_ulysses_sp, actor.ulysses_sequence_parallel_size = True, True, 2
    batch = {
        "input_ids": torch.tensor([[0, 1, 2, 3, 4, 5]]),
        "responses": torch.tensor([[3, 4, 5]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]]),
    }
    found = []
    for rank in range(2):
        monkeypatch.setattr(ulysses, "slice_input_tensor", lambda x, dim, padding, rank=rank: x.chunk(2, dim)[rank])
        found.append(actor._in_layout(*labels_and_wanted(batch), batch["attention_mask"]))
    assert [labels[:2].tolist() for labels, _ in found] == [[2, 3], [5, 0]] and found[0][0][2] == 4
    assert [wanted.tolist() for _, wanted in found] == [[False, True, True], [True, False, False]]


# Heads


def test_the_model_is_as_it_was_after_a_failed_forward() -> None:
    model = make_model()
    ids = torch.zeros(1, 4, dtype=torch.long)
    head = LogProbHead(torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.bool), 8, 1.0, False)  # one label short
    with pytest.raises(ValueError, match=r"4 hidden states for 3 tokens"), head.on(model):
        model(input_ids=ids)
    assert "forward" not in vars(model.lm_head) and not model._forward_hooks and not model._forward_pre_hooks
    assert model(input_ids=ids).logits.shape == (1, 4, VOCABULARY)


def test_heads_that_are_more_than_a_matrix_are_refused() -> None:
    with_bias = make_model()
    with_bias.lm_head = torch.nn.Linear(32, VOCABULARY)
    with pytest.raises(ValueError, match=r"fusion\.logits_chunk.*bias.*null"):
        make_actor("algorithm=hpt", "fusion.logits_chunk=4", module=with_bias)
    assert make_actor("algorithm=hpt", module=with_bias).logits_chunk is None
    assert output_head(make_model()).weight.shape == (VOCABULARY, 32)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Gemma2Config(vocab_size=VOCABULARY, intermediate_size=48, max_position_embeddings=64, **sizes)
    with pytest.raises(ValueError, match=r"Gemma2ForCausalLM scales or caps"):
        update(4, "algorithm=hpt", module=Gemma2ForCausalLM(config))


def test_two_replacements_of_the_head_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fusion\.logits_chunk=4 and .*use_fused_kernels=true"):
        make_actor("algorithm=hpt", "fusion.logits_chunk=4", "actor_rollout_ref.model.use_fused_kernels=true")


# Ranks


def _ranked_batch() -> DataProto:
    """Nine rows to read, then three silent ones: the last micro-batch of rank 1 holds no token that anything reads."""
    batch = make_batch(rows=12, demonstrations=5, hints=3, padding=3)
    batch.meta_info["mini_batches"] = 1
    return batch


def _rank(rank: int, world: int, path: str) -> None:
    torch.set_num_threads(1)
    start_group(rank, world, path + ".meeting")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module, mesh = make_model(), init_device_mesh("cpu", (world,))
    for layer in module.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    batch = _ranked_batch().select_idxs(np.arange(rank * 6, rank * 6 + 6))
    flags = (*CASES["hpt"], "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=3")
    gradients, metrics = update(4, *flags, batch=batch, module=module)
    torch.save({"gradients": gradients, "metrics": metrics}, f"{path}.{rank}")


@pytest.mark.e2e
def test_two_ranks_equal_one_and_verl(tmp_path) -> None:
    path = str(tmp_path / "rank")
    run_ranks(_rank, 2, path)
    reference = update(None, *CASES["hpt"], batch=_ranked_batch())
    for rank in range(2):
        found = torch.load(f"{path}.{rank}")
        assert_equal((found["gradients"], found["metrics"]), reference)
