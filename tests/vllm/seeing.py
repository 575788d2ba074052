"""A miniature world of pictures for vLLM: counting shapes in pictures of four cells, and a small model that answers in the right
form.

Heads have 32 dimensions, the fewest that vLLM has on CPU; those of the vision tower may have fewer.
"""

from __future__ import annotations

import copy
from typing import Any

from PIL import Image

from tests.tiny_vision import SETTINGS

from ..e2e.conftest import World

HEADS = {"hidden_size": 64, "intermediate_size": 96}
PROMPTS = 32
# 8 prompts are one batch: every step shows the same pictures again. A picture is 4 tokens.
SPLITS = {"hard": {"side": [2], "train": 8, "test": PROMPTS}}
RUN = ("task=shapes", "model=tiny_qwen2_5_vl", "data.max_prompt_length=40", "data.max_response_length=40")


def add_shapes(world: World) -> None:
    """Write data and model into a world."""
    from unify_posttrain.tasks.shapes.rows import write_splits
    from unify_posttrain.tasks.tiny_model import build_base_model

    settings = copy.deepcopy(SETTINGS) | HEADS
    # Long enough to answer in the right form about what it sees, short enough to be wrong often.
    settings["pretraining"] |= {"steps": 300, "batch_size": 16, "lr": 2e-3, "side": {2: 1.0}, "careless": {}}
    build_base_model(world.home / "models" / "tiny_qwen2_5_vl", settings)
    write_splits(world.home / "data" / "shapes", {"seed": 0, "cell": 28, "hits": 3, "splits": SPLITS})


def pictures_of(world: World) -> list[Any]:
    """The picture of each validation prompt, in their order."""
    import pyarrow.parquet as pq

    folder = world.home / "data" / "shapes"
    rows = pq.read_table(folder / "test.parquet").to_pylist()
    return [Image.open(folder / row["images"][0]["image"]).convert("RGB") for row in rows]
