"""What a batch takes on its way from the driver to the workers: as verl pickles it and as we do, in one run.

    python -m tests.benchmarks.transport                                    # 1024 rows of 1024 + 8192 tokens, one minute, 4 GB
    python -m tests.benchmarks.transport --rows 10240 --response 31744      # 64 GB of memory

Rows are as long as an exponential distribution of the given mean says, at most the whole response. One process per variant, so
that its peak of resident memory (VmHWM) is its own; reported is what it grows by over the batch itself. Seconds are of packing all
shares one after the other, and of unpacking one of them, as a rank does.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from verl import DataProto

from unify_posttrain.workers.transport import travelling

VARIANTS = ("verl", "packed")
STREAMS = ("old_log_probs", "advantages", "returns", "token_level_scores", "token_level_rewards", "rm_scores", "rollout_log_probs")


def batch(rows: int, prompt: int, response: int, mean: int) -> DataProto:
    """The tensors that a batch of GRPO has when it goes to the update."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(rows).exponential_(1 / mean, generator=generator).clamp(1, response).long()
    prompts = torch.randint(prompt // 8, prompt // 2, (rows,), generator=generator)
    position = torch.arange(prompt + response)
    mask = ((position >= prompt - prompts[:, None]) & (position < prompt + lengths[:, None])).long()
    ids = torch.randint(0, 151936, mask.shape, generator=generator) * mask
    response_mask = mask[:, prompt:].contiguous()
    floats = {name: torch.zeros(response_mask.shape) for name in STREAMS}
    floats["old_log_probs"] = -torch.rand(response_mask.shape, generator=generator) * response_mask
    floats["rollout_log_probs"] = floats["old_log_probs"].clone()
    floats["advantages"] = torch.randn(rows, 1, generator=generator) * response_mask
    tensors = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "prompts": ids[:, :prompt].contiguous(),
        "responses": ids[:, prompt:].contiguous(),
        "response_mask": response_mask,
        **floats,
    }
    return DataProto.from_dict(tensors=tensors)


def peak() -> float:
    """GB, the highest so far of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(variant: str, rows: int, prompt: int, response: int, mean: int, ranks: int) -> dict[str, float]:
    data = batch(rows, prompt, response, mean)
    before, size = peak(), sum(value.numel() * value.element_size() for value in data.batch.values()) / 1e9
    shares = (travelling(data) if variant == "packed" else data).chunk(ranks)
    start = time.perf_counter()
    sent = [pickle.dumps(share, protocol=5) for share in shares]
    packing, after = time.perf_counter() - start, peak()
    start = time.perf_counter()
    pickle.loads(sent[0])
    return {
        "tensors_gb": size,
        "sent_gb": sum(map(len, sent)) / 1e9,
        "packing_seconds": packing,
        "unpacking_seconds": time.perf_counter() - start,
        "peak_above_batch_gb": after - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1024), ("prompt", 1024), ("response", 8192), ("mean", 2048), ("ranks", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one, here, and print JSON")
    options = parser.parse_args()
    if options.variant:
        sys.stdout.write(json.dumps(measure(**vars(options))) + "\n")
        return
    flags = [f"--{name}={value}" for name, value in vars(options).items() if name != "variant"]
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "tests.benchmarks.transport", f"--variant={variant}", *flags]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
        found[variant] = json.loads(output.splitlines()[-1])
    sys.stdout.write(f"{'':24}{''.join(f'{variant:>10}' for variant in VARIANTS)}{'ratio':>8}\n")
    for key in found["verl"]:
        numbers = [found[variant][key] for variant in VARIANTS]
        ratio = numbers[1] / numbers[0] if numbers[0] else float("nan")
        sys.stdout.write(f"{key:24}{''.join(f'{number:10.3f}' for number in numbers)}{ratio:8.2f}\n")


if __name__ == "__main__":
    main()
