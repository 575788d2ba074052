"""Decoding in several processes: the same tokens, whatever ends how."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from unify_posttrain.rollout import lanes as module
from unify_posttrain.rollout.decoding import Finished, decode_batch
from unify_posttrain.rollout.hf_server import HFServer
from unify_posttrain.rollout.lanes import Lanes
from unify_posttrain.rollout.rows import Requests

from .test_decoding import EOS, GROUPS, PAD, model_of, params, prompts_of

ROOT = Path(__file__).resolve().parents[2]
ROWS = len(GROUPS)
SECONDS = 60


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes lanes that take few rows; they end with the test."""
    monkeypatch.setattr(module, "ROWS", 2)
    found: list[Lanes] = []

    def make(processes: int, model: Any = None) -> Lanes:
        found.append(Lanes(model or model_of("qwen2"), processes))
        return found[-1]

    yield make
    for each in found:
        each.close()


def others() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]


def requests(rows: int = ROWS) -> list[Any]:
    return [params(seed) for seed in range(rows)]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("prompts", [GROUPS, prompts_of(3, 9, 1, 9, 6, 4), GROUPS[:1] * 8], ids=["groups", "unequal", "one"])
def test_tokens_are_those_of_one_process(made: Any, prompts: list[list[int]], processes: int) -> None:
    before = len(others())
    lanes = made(processes)
    expected = decode_batch(model_of("qwen2"), prompts, requests(len(prompts)), EOS, PAD)
    first, again = (lanes.decode_batch(prompts, requests(len(prompts)), EOS, PAD) for _ in range(2))
    assert_same(first, expected)
    assert len(others()) == before + processes - 1, "started once"
    for one, other in zip(first, again, strict=True):
        assert one.token_ids == other.token_ids and torch.equal(one.log_probs, other.log_probs), "to the last bit"
    lanes.close()
    assert len(others()) == before
    assert_same(lanes.decode_batch(prompts, requests(len(prompts)), EOS, PAD), expected)


@pytest.mark.parametrize("portion", [1, 5, ROWS])
def test_every_row_comes_once(made: Any, portion: int) -> None:
    lanes = made(2)
    parts = list(lanes.decode(GROUPS, requests(), EOS, PAD, portion))
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(ROWS))
    assert len(parts) >= 2 and (portion == ROWS or len(parts) > 2)


def test_a_process_decodes_what_shares_a_prompt(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three groups the first and the last stay here."""
    given: list[Any] = []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda model, prompts, *rest: given.append(prompts) or decode(model, prompts, *rest))
    lanes = made(2)
    lanes.decode_batch(GROUPS, requests(), EOS, PAD)
    assert given == [GROUPS[:4] + GROUPS[8:]]


def test_new_weights_are_those_of_all(made: Any) -> None:
    model = model_of("qwen2")
    lanes = made(2, model)
    before = lanes.decode_batch(GROUPS, requests(), EOS, PAD)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    found = lanes.decode_batch(GROUPS, requests(), EOS, PAD)
    assert_same(found, decode_batch(model, GROUPS, requests(), EOS, PAD))
    assert [each.token_ids for each in found] != [each.token_ids for each in before]
    assert model.lm_head.weight.data_ptr() and len({id(each) for each in model.parameters()}) == len(list(model.parameters()))


def test_tied_weights_stay_tied(made: Any) -> None:
    model = model_of("qwen2")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    made(2, model).decode_batch(GROUPS, requests(), EOS, PAD)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_few_rows_start_nothing(made: Any) -> None:
    before, lanes = len(others()), made(2)
    assert len(lanes.decode_batch(GROUPS[:3], requests(3), EOS, PAD)) == 3
    assert len(others()) == before


def test_threads_are_given_back(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    lanes = made(2)
    lanes.decode_batch(GROUPS[:3], requests(3), EOS, PAD)
    assert set(asked) == {7}, "all of them for few rows"
    asked.clear()
    lanes.decode_batch(GROUPS, requests(), EOS, PAD)
    assert set(asked[::2]) == {1} and set(asked[1::2]) == {7}


def test_a_batch_that_is_given_up_leaves_nothing_behind(made: Any) -> None:
    lanes = made(2)
    expected = lanes.decode_batch(GROUPS, requests(), EOS, PAD)
    abandoned = lanes.decode(GROUPS, [params(seed + 50) for seed in range(ROWS)], EOS, PAD, 2)
    assert isinstance(next(abandoned), Finished)
    abandoned.close()
    assert_same(lanes.decode_batch(GROUPS, requests(), EOS, PAD), expected)
    assert len(lanes.decode_batch(GROUPS[:3], requests(3), EOS, PAD)) == 3


def test_an_error_of_a_process_is_said_and_it_goes_on(made: Any) -> None:
    lanes = made(2)
    expected = lanes.decode_batch(GROUPS, requests(), EOS, PAD)
    broken = [list(prompt) for prompt in GROUPS]
    broken[4] = [10_000]  # no token of the model; the second group is the other process's
    with pytest.raises(RuntimeError, match=r"failed in a process of the engine: IndexError: index out of range"):
        lanes.decode_batch(broken, requests(), EOS, PAD)
    assert_same(lanes.decode_batch(GROUPS, requests(), EOS, PAD), expected)


def test_an_error_of_this_one_too(made: Any) -> None:
    lanes = made(2)
    expected = lanes.decode_batch(GROUPS, requests(), EOS, PAD)
    broken = [list(prompt) for prompt in GROUPS]
    broken[0] = [10_000]
    with pytest.raises(IndexError):
        lanes.decode_batch(broken, requests(), EOS, PAD)
    assert_same(lanes.decode_batch(GROUPS, requests(), EOS, PAD), expected)


def test_the_death_of_a_process_is_said(made: Any) -> None:
    lanes = made(2)
    lanes.decode_batch(GROUPS, requests(), EOS, PAD)
    os.kill(lanes._others[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"a process of the engine \(lane \d+\) has ended .*SIGKILL"):
        lanes.decode_batch(GROUPS, requests(), EOS, PAD)


def test_a_batch_larger_than_a_pipe(made: Any) -> None:
    """More in either direction than the kernel holds for a reader who is busy."""
    prompts = [[3] * 40_000 for _ in range(4)]
    assert len(pickle.dumps(prompts[:2])) > 1 << 16
    lanes = made(2)

    class Echo:
        """In the place of decoding: as much comes back, before anybody asks for it."""

        def __call__(self, _model: Any, given: list[list[int]], *_rest: Any) -> Iterator[Finished]:
            tokens = torch.tensor(given)
            yield from (
                Finished(torch.tensor([row]), torch.tensor([1]), tokens[row : row + 1], tokens[row : row + 1].float())
                for row in range(len(given))
            )

    module.decode, kept = Echo(), module.decode
    try:
        assert len(lanes.decode_batch(prompts, requests(4), EOS, PAD)) == 4
        abandoned = lanes.decode(prompts, requests(4), EOS, PAD, 1)
        next(abandoned)
        abandoned.close()
        assert len(lanes.decode_batch(prompts, requests(4), EOS, PAD)) == 4
    finally:
        module.decode = kept


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it() -> None:
    script = """
        import os, signal, sys
        from tests.rollout.test_lanes import EOS, GROUPS, PAD, Lanes, model_of, module, requests
        module.ROWS = 2
        lanes = Lanes(model_of("qwen2"), 3)
        lanes.decode_batch(GROUPS, requests(), EOS, PAD)
        print(*(lane.pid for lane in lanes._others), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
    pids = list(map(int, done.stdout.split()))
    assert done.returncode == -signal.SIGKILL and len(pids) == 2, done.stderr
    deadline = time.monotonic() + SECONDS
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_answers_alike(made: Any, tmp_path: Path) -> None:
    """Batches, and single requests that wait beside each other; and with other weights again."""
    model = model_of("qwen2")
    model.save_pretrained(tmp_path)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found: dict[int, list[Any]] = {}
    for lanes in (1, 2):
        server = HFServer(
            model_path=str(tmp_path), pad_id=PAD, eos_ids=list(EOS), response_length=9, max_context=40, max_batch=16,
            gather_seconds=0.05, dtype="float32", override_config={"attn_implementation": "sdpa"}, lanes=lanes,
        )  # fmt: skip
        found[lanes] = []
        for factor in (1.0, 0.5):
            server.load_weights({name: factor * weight for name, weight in weights.items()})
            found[lanes] += asyncio.run(answers(server))
        server.pool.submit(server.lanes.close).result()
    assert found[1] == found[2] and len(found[1]) == 4 * ROWS and len(set(map(tuple, found[1]))) > 4


async def answers(server: HFServer) -> list[list[int]]:
    """Tokens of one batch, then of as many single requests."""
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 9}
    prompts = [np.array(prompt, dtype=np.int32) for prompt in GROUPS]
    tokens: dict[int, list[int]] = {}
    async for part in server.generate_batch(Requests(prompts, [9] * ROWS, list(range(ROWS)), sampling, portion=4)):
        ends = part.lengths.cumsum()
        tokens |= {
            int(row): part.token_ids[end - length : end].tolist()
            for row, length, end in zip(part.rows, part.lengths, ends, strict=True)
        }
    single = await asyncio.gather(*(server.generate(str(row), GROUPS[row], {**sampling, "seed": row}) for row in range(ROWS)))
    return [tokens[row] for row in range(ROWS)] + [each.token_ids for each in single]


def test_less_than_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lanes=0: decoding takes at least one process"):
        Lanes(model_of("qwen2"), 0)
