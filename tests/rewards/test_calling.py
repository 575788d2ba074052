"""The one wrapper: real files, real processes. Whatever a reward function does costs its row, and is said."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rewards import misbehaving
from unify_posttrain.config import compose_config
from unify_posttrain.rewards import calling
from unify_posttrain.rewards.calling import OUTCOME, Gatherer, InProcessCaller, ProcessCaller, as_settings, build_caller
from unify_posttrain.rewards.contract import RESERVED, Contract, Scored, sayable
from unify_posttrain.rewards.loading import LoadError, load_function
from unify_posttrain.rewards.pool import WorkerStartError
from unify_posttrain.rewards.protection import Protection, tally

pytestmark = pytest.mark.slow

PROTECTION = replace(Protection.from_node(compose_config([]).reward.protection), timeout_seconds=1.0, memory_mb=2048)
NODE = {"path": misbehaving.__file__, "name": "compute_score"}
NUMBER, UNSCORED, FAULT, REFUSED = "number", "unscored", "fault", "refused"
HALVES = ("float", "float32", "array of no dimension", "tensor", "bfloat16", "mapping", "ordered", "coroutine")
LACKING = ("none", "nan", "inf", "tensor of nan", "mapping of none", "mapping of nan", "huge integer")
UNSAYABLE = ("field of object", "field of set", "field of complex", "field of bytes", "field of time")
# What becomes of every result: (kind, score or words of the detail).
EXPECTED: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(HALVES, (NUMBER, 0.5)),
    **dict.fromkeys(("int", "bool", "int64", "bool_"), (NUMBER, 1.0)),
    **dict.fromkeys(LACKING, (UNSCORED, "gave no score")),
    **{
        name: (FAULT, f"{kind} (")
        for name, kind in {
            "text": "str", "bytes": "bytes", "complex": "complex", "list": "list", "tuple": "tuple", "array": "ndarray",
            "array of one": "ndarray", "decimal": "Decimal", "fraction": "Fraction", "set": "set", "generator": "generator",
            "object": "Odd", "function": "builtin_function_or_method", "score of text": "str", "score of list": "list",
        }.items()
    },
    "no score": (FAULT, "a mapping without `score` (acc)"),
    "empty": (FAULT, "a mapping without `score` (empty)"),
    **{name: (NUMBER, 1.0) for name in misbehaving.RESULTS if name.startswith("field of")},
    "some field": (NUMBER, 1.0),
    **dict.fromkeys(UNSAYABLE, (FAULT, "JSON cannot say")),
    **dict.fromkeys(("field nested deep", "field in a circle"), (FAULT, "JSON cannot say (RecursionError)")),
    "field of number as text": (FAULT, "field 'acc' holds yes; it must be a number"),
    "field without a name": (FAULT, "names are printable text"),
    "field of a strange name": (FAULT, "names are printable text"),
    "field that is taken": (REFUSED, "field 'uid', a name that the batch has for something else"),
    "field of the data": (REFUSED, "field 'difficulty'"),
}  # fmt: skip
ACTS: dict[str, tuple[str, str]] = {
    "raise": ("error", "ValueError: no\nsuch thing"),
    "raise base": ("error", "Strange: no"),
    "raise in text": ("error", "ValueError"),
    "exit": ("error", "SystemExit: 3"),
    "os exit": ("crash", "exit code 5"),
    "abort": ("crash", "SIGABRT"),
    "kill": ("crash", "SIGKILL"),
    "segfault": ("crash", "SIGSEGV"),
    "recursion": ("error", "RecursionError"),
    "spin": ("timeout", "no result within 1.0 s"),
    "sleep": ("timeout", "no result within 1.0 s"),
    "late": ("timeout", "no result within 1.0 s"),
    "memory": ("memory", "more than 2048 MB"),
}
FIELDS = {
    "field of list": '[1, 2.5, "x", null, null]',
    "field of mapping": '{"a": {"b": [1, 2]}, "3": [0, 1]}',
    "field of array": "[0, 1, 2]",
    "field of tensor": "[1.0, 1.0]",
    "field of nan": None,
    "field of none": None,
    "field of surrogate": "a?b",
    "field of huge integer": float(2**80),
}


def call(what: str, **further: Any) -> dict[str, Any]:
    return {"data_source": "sums", "solution_str": what, "ground_truth": "1", "extra_info": {}, **further}


@pytest.fixture(scope="module")
def caller() -> Iterator[ProcessCaller]:
    made = ProcessCaller(NODE, PROTECTION, taken=["difficulty"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def results(caller: ProcessCaller) -> dict[str, Scored]:
    """All results in one batch, between rows that are fine."""
    return dict(zip(EXPECTED, caller([call(what) for what in EXPECTED]), strict=True))


def test_every_result_has_an_expectation() -> None:
    assert set(EXPECTED) == set(misbehaving.RESULTS)


@pytest.mark.parametrize("what", EXPECTED)
def test_what_a_function_may_return(what: str, results: dict[str, Scored]) -> None:
    scored, (kind, expected) = results[what], EXPECTED[what]
    assert json.loads(json.dumps(scored.to_dict())) == scored.to_dict()
    assert (scored.fault == "error", scored.unscored, scored.refused) == (
        kind in (FAULT, REFUSED),
        kind == UNSCORED,
        kind == REFUSED,
    )
    if kind == NUMBER:
        assert scored.score == expected and not scored.detail
        assert all(value is None or isinstance(value, bool | int | float | str) for value in scored.fields.values())
        assert what not in FIELDS or scored.fields["parts"] == FIELDS[what]
    else:
        assert scored.score == 0 and expected in scored.detail
        assert f"reward function compute_score of {misbehaving.__file__}" in scored.detail, "the function is named"


def test_a_long_text_is_cut(results: dict[str, Scored]) -> None:
    text = results["field of huge text"].fields["parts"]
    assert text == "x" * PROTECTION.field_characters + "… (5000000 characters)"


@pytest.mark.parametrize("what", ACTS)
def test_a_failure_costs_its_row(what: str, caller: ProcessCaller) -> None:
    rows = ["float"] * 5 + [what] + ["int"] * 5
    scored = caller([call(row) for row in rows])
    assert [each.score for each in scored] == [0.5] * 5 + [0] + [1] * 5
    assert [each.fault for each in scored] == [None] * 5 + [ACTS[what][0]] + [None] * 5
    assert ACTS[what][1] in scored[5].detail


def test_a_quiet_exit_is_no_result(caller: ProcessCaller) -> None:
    """Exit code 0 is how a worker ends that has nothing more to do."""
    scored = caller.send([call("float"), call("os exit 0"), call("int")])
    assert [each.fault for each in scored] == [None, "crash", None]


@pytest.mark.parametrize("what", misbehaving.HARMLESS)
def test_what_a_function_changes_stays_with_it(what: str, caller: ProcessCaller) -> None:
    before, folder, threads = dict(os.environ), os.getcwd(), threading.active_count()
    assert [each.score for each in caller([call("float"), call(what), call("int"), call("sleep")])] == [0.5, 1.0, 1.0, 0.0]
    assert (dict(os.environ), os.getcwd(), threading.active_count()) == (before, folder, threads)
    assert caller([call("float")])[0].score == 0.5


@pytest.mark.parametrize("what", ["prime_math", "prime_math, unseen"])
def test_graders_that_evaluate_are_refused_from_within(what: str, caller: ProcessCaller) -> None:
    slow = ProcessCaller(NODE, replace(PROTECTION, timeout_seconds=120.0, workers=1))  # verl's import takes its time
    try:
        (scored,) = slow([call(what)])
    finally:
        slow.close()
    assert scored.refused and "prime_math evaluates model text (CVE-2026-6878)" in scored.detail


def test_arguments_that_cannot_be_sent_cost_their_row(caller: ProcessCaller) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    odd = [call("int"), call("int", extra_info={"f": lambda: 1}), call("int"), call("int", ground_truth=deep), call("float")]
    scored = caller(odd)
    assert [each.fault for each in scored] == [None, "error", None, "error", None]
    assert "cannot be sent" in scored[1].detail and "cannot be sent" in scored[3].detail
    while deep:  # taken apart step by step: freeing it at once would be another recursion
        deep = deep[0]


def test_a_thousand_brackets_of_text_are_a_text(caller: ProcessCaller) -> None:
    assert caller([call("int", ground_truth="[" * 100_000)])[0].score == 1.0


def test_own_threads_and_batches_agree(caller: ProcessCaller) -> None:
    """Row by row, as verl's managers ask, and in the order of the rows whatever takes longer."""

    async def ask() -> list[Scored]:
        gatherer = Gatherer(caller)
        return await asyncio.gather(*(gatherer.score(call(what)) for what in ["float", "int", "os exit", "nan"] * 40))

    scored = asyncio.run(ask())
    assert [each.score for each in scored] == [0.5, 1.0, 0.0, 0.0] * 40
    counted = tally(scored)
    assert (counted.calls, dict(counted.faults), counted.unscored) == (160, {"crash": 40}, 40)


def test_verls_signature(tmp_path: Path) -> None:
    settings = as_settings(NODE, PROTECTION)

    async def ask() -> dict[str, Any]:
        return await calling.compute_score("sums", "mapping", "1", None, settings=settings)

    result = asyncio.run(ask())
    assert (result["score"], result[OUTCOME]["fields"]) == (0.5, {"score": 0.5, "acc": 1.0, "pred": "x"})
    assert calling.compute_score_sync("sums", "raise", "1", None, settings=settings)[OUTCOME]["fault"] == "error"
    calling.gatherers.close()


# --- in the calling process ------------------------------------------------------------------------------------------


def in_process(function: Any, timeout_seconds: float = 1.0) -> InProcessCaller:
    return InProcessCaller(function, Contract("it", 100), 2, timeout_seconds)


@pytest.mark.parametrize("what", ["raise", "exit", "recursion", "text", "field of set"])
def test_exceptions_are_caught_there_too(what: str) -> None:
    scored = in_process(misbehaving.compute_score)([call("float"), call(what), call("int")])
    assert [each.score for each in scored] == [0.5, 0, 1.0] and scored[1].fault == "error"


def test_asynchronous_functions_share_the_loop() -> None:
    """All three meet, so none waited for another; one of them hangs afterwards, one raises."""
    together = asyncio.Event()
    met: list[str] = []

    async def reward(solution_str: str, **_: Any) -> float:
        met.append(solution_str)
        if len(met) == 3:
            together.set()
        await together.wait()
        if solution_str == "hangs":
            await asyncio.sleep(3600)
        if solution_str == "raises":
            raise SystemExit(2)
        return 0.25

    async def ask() -> list[Scored]:
        caller = in_process(reward)
        return await asyncio.gather(*(caller.awaited(call(what)) for what in ("fine", "hangs", "raises")))

    scored = asyncio.run(ask())
    assert [each.fault for each in scored] == [None, "timeout", "error"] and scored[0].score == 0.25


def test_who_runs_where(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def plain(**_): return 1.0\nasync def later(**_): return 1.0\n")

    def kind(name: str, **changes: Any) -> type:
        made = build_caller({"path": str(file), "name": name}, replace(PROTECTION, **changes))
        made.close()
        return type(made)

    assert kind("plain") is ProcessCaller
    assert kind("plain", process=False) is kind("later") is InProcessCaller
    own = {"path": "pkg://unify_posttrain.tasks.arithmetic", "name": "compute_score"}
    assert isinstance(build_caller(own, PROTECTION), InProcessCaller)


# --- loading ---------------------------------------------------------------------------------------------------------

BROKEN = {
    "def compute_score(:": "SyntaxError",
    "import no_such_module": "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
    "raise ValueError('at import')": "fails when it is imported: ValueError: at import",
    "import sys; sys.exit(4)": "fails when it is imported: SystemExit: 4",
    "x = 1": "name=compute_score: .* has no such function; it defines none",
    "def other(**_): pass": "it defines other",
    "compute_score = 3": "is int, not a function",
    "def compute_score(text, answer): return 1.0": r"takes \(text, answer\), but is called with data_source=….*name its arguments",
    "def compute_score(data_source, solution_str, ground_truth, extra_info, *, bonus): pass": "bonus",
    "from verl.utils.reward_score import prime_math": "prime_math evaluates model text",
}


@pytest.mark.parametrize("source", BROKEN)
def test_what_cannot_be_loaded_says_so(source: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    node = {"path": str(file), "name": "compute_score"}
    made = ProcessCaller(node, PROTECTION)
    with pytest.raises(WorkerStartError, match=BROKEN[source]) as error:
        made.load()
    assert error.value.reason.startswith("reward.custom_reward_function.")
    made.close()


@pytest.mark.parametrize(
    "source", ["import os; os._exit(0)", "import time; time.sleep(3600)", "import ctypes; ctypes.string_at(0)"]
)
def test_nor_does_a_file_that_takes_its_process_along(source: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    made = ProcessCaller({"path": str(file), "name": "compute_score"}, replace(PROTECTION, load_seconds=5.0))
    with pytest.raises(WorkerStartError, match="it ended, or took more than 5 s"):
        made.load()
    made.close()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/mine.py", r"path=/nowhere/mine\.py does not exist; check the path"),
        ("file:///nowhere/mine.py", "does not exist"),
        ("pkg://no_such.module", "cannot be imported"),
        ("pkg://verl.utils.reward_score.prime_code", "runs programs that a model wrote"),
    ],
)
def test_paths(path: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        load_function({"path": path, "name": "compute_score"})


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_no_name_of_the_batch_is_a_field(name: str) -> None:
    with pytest.raises(ValueError, match="rename it"):
        Contract("it", 10).read({"score": 1.0, name: 1})


def test_missing_and_infinite_values_are_one() -> None:
    assert [sayable(value, 9) for value in (None, float("nan"), float("inf"), 1, True, "x")] == [None, None, None, 1, True, "x"]


def test_too_many_failures_are_said() -> None:
    scored = [Scored(1.0), Scored.failed("error", "ValueError: no"), Scored.failed("timeout", "no result within 1 s")]
    assert tally(scored).excess(replace(PROTECTION, max_fault_share=0.7), "it") is None
    message = tally(scored).excess(PROTECTION, "reward function f of m.py")
    assert message.startswith("reward function f of m.py: 2 of 3 calls failed (1 error, 1 timeout), more than reward.protection.")
    assert "the last: timeout: no result within 1 s" in message
