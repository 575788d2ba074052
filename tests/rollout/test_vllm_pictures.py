"""What verl's vLLM servers are given for a model that sees, without vLLM; tests/vllm/test_pictures.py asks vLLM itself."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest

from unify_posttrain.backend import seams
from unify_posttrain.rollout.vllm_pictures import SCHEDULERS, LooksAgain, forget_pictures


class Server:
    """As much of verl's server as is read."""

    def __init__(self, processor: Any, given: Any) -> None:
        self.model_config = SimpleNamespace(processor=processor)
        self.config = SimpleNamespace(engine_kwargs={"vllm": given})


class SeeingServer(LooksAgain, Server):
    pass


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, {"scheduler_cls": f"{SCHEDULERS}.ForgettingScheduler"}),
        ({"async_scheduling": True}, {"scheduler_cls": f"{SCHEDULERS}.ForgettingAsyncScheduler", "async_scheduling": True}),
        ({"scheduler_cls": "theirs"}, {"scheduler_cls": "theirs"}),
    ],
)
def test_an_engine_that_sees_gets_a_scheduler_that_forgets(
    given: Any, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seams, "FORGETS_PICTURES", False)
    assert SeeingServer("a processor", given).config.engine_kwargs["vllm"] == found
    assert SeeingServer(None, given).config.engine_kwargs["vllm"] == given, "a model of text keeps vLLM's"
    monkeypatch.setattr(seams, "FORGETS_PICTURES", True)
    assert SeeingServer("a processor", given).config.engine_kwargs["vllm"] == given, "where verl's server does it itself"


def test_pictures_that_no_request_looks_at_are_forgotten() -> None:
    """Room for 10 tokens: one picture of 4 that a request looks at, two of 3 and 2 that none does."""
    kept = SimpleNamespace(
        cached={"seen": {"request"}, "old": set(), "older": set()},
        freeable=OrderedDict(older=2, old=3),
        freed=[],
        num_free_slots=1,
        num_freeable_slots=6,
    )
    forget_pictures(kept)
    assert kept.cached == {"seen": {"request"}} and not kept.freeable
    assert kept.freed == ["older", "old"] and kept.num_free_slots == kept.num_freeable_slots == 6
