"""The engines by name; each is imported when it is chosen."""

from __future__ import annotations

from pathlib import Path

from unify_posttrain.evaluation.requests import ENGINES, Engine, EngineSettings, Output, Request

__all__ = ["ENGINES", "Engine", "EngineSettings", "Output", "Request", "start_engine"]


def start_engine(folder: Path, settings: EngineSettings) -> Engine:
    """Load a model.

    Raises:
        ValueError: the engine's package is not installed, or the folder holds no language model.
    """
    if settings.name == "hf":
        from unify_posttrain.evaluation.hf_engine import HFEngine

        return HFEngine(folder, settings)
    from unify_posttrain.evaluation.vllm_engine import VLLMEngine

    return VLLMEngine(folder, settings)
