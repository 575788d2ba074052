"""What verl's DataParallelPPOActor makes of batches with pictures, kept as numbers like `legacy_outcomes`.

    python -m tests.workers.picture_outcomes --write        # with verl 0.7.1

Per batch: the metrics of an update, and of its gradient the norm and its products with fixed random directions.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from .legacy_outcomes import sketch

FILE = Path(__file__).with_suffix(".json")
BATCHES = {"text": [0] * 6, "pictures": [1] * 6, "mixed": [1, 0, 2, 0, 1, 1]}  # pictures of each row's prompt


def record(actor: Any, batch: Any) -> dict[str, Any]:
    """Of one update, whose gradient the actor keeps."""
    metrics = actor.update_policy(batch)
    return {"metrics": metrics, "gradient": sketch(actor.gradients[0])}


def read() -> dict[str, dict[str, Any]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def main() -> None:
    from tests.tiny_vision import SETTINGS
    from unify_posttrain.tasks.tiny_model import build_base_model

    from .picture_kit import make_seeing_actor, rows

    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    folder = build_base_model(Path(tempfile.mkdtemp()) / "tiny_qwen2_5_vl", SETTINGS)
    found = {kind: record(make_seeing_actor(folder), rows(folder, shown)) for kind, shown in BATCHES.items()}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
