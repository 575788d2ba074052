"""A smallest model that sees, for tests: settings of `prepare.model`, and prompts with and without pictures."""

from __future__ import annotations

SETTINGS = {
    "name": "tiny_qwen2_5_vl",
    "folder": "ignored",
    "seed": 5,
    "layers": 2,
    "hidden_size": 32,
    "heads": 2,
    "kv_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "rope_theta": 100.0,
    "vision": {
        "layers": 2,
        "hidden_size": 16,
        "heads": 2,
        "intermediate_size": 32,
        "patch": 14,
        "merge": 2,
        "most_image_tokens": 256,
    },
    "pretraining": {
        "task": "shapes",
        "steps": 2,
        "batch_size": 4,
        "lr": 1.0e-3,
        "betas": [0.9, 0.95],
        "weight_decay": 0.01,
        "warmup_ratio": 0.25,
        "grad_clip": 1.0,
        "cell": 28,
        "hits": 3,
        "side": {2: 0.5, 3: 0.5},
        "careless": {3: 1.0},
    },
}


def picture(width: int, height: int, seed: int = 0):
    """An RGB picture of noise: no two seeds look alike to a model."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def prompt(text: str, *pictures) -> list[dict]:
    """A message of the user that shows pictures (paths, data URIs or images) before its text; plain text without any."""
    if not pictures:
        return [{"role": "user", "content": text}]
    parts = [{"type": "image", "image": each} for each in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
