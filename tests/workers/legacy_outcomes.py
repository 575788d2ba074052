"""What verl's DataParallelPPOActor makes of a batch, kept as numbers, so that an environment without it can be held against it.

    python -m tests.workers.legacy_outcomes --write        # with verl 0.7.1

Per algorithm and update: the metrics, and of every step's gradient its norm and its products with fixed random directions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = Path(__file__).with_suffix(".json")
DIRECTIONS = 6


def settled(module: nn.Module) -> nn.Module:
    """The same weights whatever version of transformers made the model: drawn by name, with the spread of the kit's."""
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if parameter.dim() > 1:
                generator = torch.Generator().manual_seed(sum(map(ord, name)))
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def sketch(gradient: Mapping[str, Tensor]) -> list[float]:
    """A gradient's norm, then its products with random directions of length 1."""
    norm = torch.sqrt(sum(value.double().square().sum() for value in gradient.values()))
    products = torch.zeros(DIRECTIONS, dtype=torch.float64)
    squares = torch.zeros(DIRECTIONS, dtype=torch.float64)
    for name, value in sorted(gradient.items()):
        generator = torch.Generator().manual_seed(sum(map(ord, name)) + 1)
        directions = torch.randn(DIRECTIONS, *value.shape, generator=generator).double().flatten(1)
        products += directions @ value.double().flatten()
        squares += directions.square().sum(dim=1)
    return [float(norm), *(products / squares.sqrt()).tolist()]


def record(actor: Any) -> list[dict[str, Any]]:
    """Every update of the algorithm."""
    from .packed_kit import updates

    found = []
    for metrics in updates(actor):
        found.append({"metrics": metrics, "gradients": [sketch(each) for each in actor.gradients]})
        actor.gradients = []
    return found


def read() -> dict[str, list[dict[str, Any]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def legacy(name: str) -> list[dict[str, Any]]:
    """As it is made here and now, by verl 0.7.1."""
    from .actor_kit import make_actor, make_model

    return record(make_actor(f"algorithm={name}", module=settled(make_model())))


def main() -> None:
    from unify_posttrain.algorithms import ALGORITHMS

    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    FILE.write_text(json.dumps({name: legacy(name) for name in sorted(ALGORITHMS)}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
