"""A whole update of the actor on CPU, with verl's forward pass, with its fused kernels and with ours: time and peak memory.

The model is Qwen2.5-1.5B shrunk to width 128 with its proportions kept: 28 layers, an MLP 5.8 times and a vocabulary 99 times the
width, so that the output head has the same share of the work. Gradient checkpointing as in the GPU settings; HPT with its entropy
bonus, a quarter of the tokens prompts, no padding. Each form in a process of its own, alternated. Started by
`python -m tests.benchmarks.objective --update`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from tests.benchmarks.objective import resident, seconds, table
from tests.devices import hide_gpus

ROOT = Path(__file__).resolve().parents[2]
ROWS, PROMPT, RESPONSE, WIDTH, VOCABULARY, LAYERS = 4, 64, 192, 128, 12672, 28
FORMS = {
    "verl": (),
    "verl fused": ("actor_rollout_ref.model.use_fused_kernels=true",),
    "ours": ("fusion.logits_chunk=64",),
}


def measure(form: str, updates: int = 3) -> dict[str, float]:
    """CPU seconds of an update (median, after a first one) and GB over what the process holds before it."""
    hide_gpus()  # before verl is imported, which takes a GPU where it sees one
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from verl.models.transformers.monkey_patch import patch_forward_with_backends

    from tests.workers.actor_kit import make_actor

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=12, num_key_value_heads=2,
        head_dim=16, intermediate_size=746, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    patch_forward_with_backends(model, form == "verl fused", "torch")
    actor = make_actor("algorithm=hpt", *FORMS[form], module=model, recording=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = batch_of_full_rows()
    before = resident("VmRSS")
    times = [seconds(lambda: actor.update_policy(batch), "cpu") for _ in range(updates + 1)]
    return {"seconds": statistics.median(times[1:]), "memory_gb": resident("VmHWM") - before}


def batch_of_full_rows(rows: int = ROWS, prompt: int = PROMPT, response: int = RESPONSE, vocabulary: int = VOCABULARY):
    """HPT's batch: half of the rows demonstrations, every token attended."""
    from verl import DataProto

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, prompt + response), generator=generator)
    demonstrations = (torch.arange(rows) < rows // 2).unsqueeze(-1).expand(-1, response)
    tensors = {
        "input_ids": ids,
        "responses": ids[:, prompt:],
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(prompt + response).expand(rows, -1).contiguous(),
        "response_mask": torch.ones(rows, response, dtype=torch.long),
        "prefix_mask": demonstrations.clone(),
        "old_log_probs": torch.full((rows, response), -9.0),
        "advantages": torch.randn(rows, 1, generator=generator).expand(-1, response).contiguous(),
        "rl_weight": (~demonstrations[:, 0]).float(),
        "off_weight": torch.zeros(rows),
        "sft_weight": demonstrations[:, 0].float(),
    }
    return DataProto.from_dict(tensors=tensors, meta_info={"temperature": 1.0, "mini_batches": 1, "term_scales": {}})


def compare_updates(rounds: int = 2) -> None:
    """Print the table; the better of `rounds` runs of each form."""
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for number in range(rounds):
        for form in list(FORMS)[:: 1 if number % 2 else -1]:
            command = [sys.executable, "-m", "tests.benchmarks.objective_update", form]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            runs[form].append(json.loads(done.stdout.splitlines()[-1]))
    best = {form: {key: min(run[key] for run in found) for key in found[0]} for form, found in runs.items()}
    for result in best.values():
        result |= {f"{key} / verl": result[key] / best["verl"][key] for key in ("seconds", "memory_gb")}
    print(table(best))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
