"""What all figures of this room share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DPI = 130


def start() -> None:
    """Set matplotlib up: no display is needed, none is opened, and names from data are never read as formulas."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False


def save(figure: Any, path: Path) -> Path:
    """Write and close a figure."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return path
