"""Pictures in a miniature world: shapes of four by four cells, and the tiny model that sees, which solves some of them."""

from __future__ import annotations

import yaml

from .conftest import ROOT, World

SPLITS = {"easy": {"side": [2], "train": 0, "test": 8}, "hard": {"side": [4], "train": 24, "test": 8}}
# A prompt is 16 tokens of a picture, 2 around them, 24 of a question and 8 of the template; an answer 4 rows of 11 and "answer 3".
RUN = ("task=shapes", "model=tiny_qwen2_5_vl", "data.max_prompt_length=52", "data.max_response_length=54")


def add_shapes(world: World) -> None:
    """Write data and model into a world. The model is that of the quick start: two minutes of one core."""
    from unify_posttrain.tasks.shapes.rows import write_splits
    from unify_posttrain.tasks.tiny_model import build_base_model

    model = yaml.safe_load((ROOT / "conf" / "model" / "tiny_qwen2_5_vl.yaml").read_text())["prepare"]["model"]
    build_base_model(world.home / "models" / "tiny_qwen2_5_vl", model)
    write_splits(world.home / "data" / "shapes", {"seed": 0, "cell": 28, "hits": 6, "splits": SPLITS})
