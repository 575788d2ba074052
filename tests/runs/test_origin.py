"""A checkpoint says what wrote it; another torch is refused with the way out, another backend is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from unify_posttrain.runs import origin

FOLDER = Path("runs/a/checkpoints/global_step_4")


def written(torch: str, backend: str = "legacy") -> dict:
    return {origin.ORIGIN: {"backend": backend, "verl": "0.7.1", "torch": torch}}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "version", {"verl": "0.9.1", "torch": "2.11.0+cu130"}.__getitem__)


def test_what_is_written() -> None:
    config = OmegaConf.create({"trainer": {"backend": "engine"}})
    assert origin.origin(config) == {"backend": "engine", "verl": "0.9.1", "torch": "2.11.0+cu130"}


@pytest.mark.parametrize("state", [None, {}, written("2.11.1"), written("2.11.0", backend="engine")])
def test_backends_and_patch_releases_continue_each_other(state: dict | None) -> None:
    origin.check_origin(state, FOLDER)


def test_shards_of_another_torch_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"global_step_4 was written with torch 2\.9\.1, this is torch 2\.11\.0") as caught:
        origin.check_origin(written("2.9.1"), FOLDER)
    assert "python -m unify_posttrain.export runs/a step=4" in str(caught.value) and "moments, which are lost" in str(caught.value)
