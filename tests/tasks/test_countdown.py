"""The countdown task: search and worked solutions, the verifier against honest and adversarial text, rows and files."""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations, product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from unify_posttrain.tasks import PREPARERS, countdown, files
from unify_posttrain.tasks.formula import FormulaError, evaluate

CONF = Path(__file__).parents[2] / "conf"
SPLITS = {
    "easy": {"numbers": [3], "train": 0, "test": 12},
    "hard": {"numbers": [4], "train": 40, "test": 9},
    "ood": {"numbers": [5, 6], "train": 0, "test": 8},
}
SETTINGS = {"name": "countdown", "folder": "ignored", "seed": 3, "largest": 6, "splits": SPLITS}
TRUTH = '{"numbers": [8, 3, 3, 2], "target": 29}'


def score(text: str, truth: str = TRUTH) -> float:
    result = countdown.compute_score("countdown_hard", text, truth, extra_info={"index": 0}, unknown_keyword=1)
    assert set(result) == {"score", "acc"} and result["score"] == result["acc"]
    assert all(type(value) is float for value in result.values())
    return result["score"]


def changed(path: str, value: object) -> dict:
    """A copy of SPLITS with one value replaced, e.g. changed("easy.numbers", [0])."""
    splits = copy.deepcopy(SPLITS)
    name, key = path.split(".")
    splits.setdefault(name, {})[key] = value
    return splits


def reachable(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    """Everything that + - * / make of all the numbers: an independent, exhaustive solver."""
    if len(numbers) == 1:
        return {numbers[0]}
    found: set[Fraction] = set()
    for i, j in combinations(range(len(numbers)), 2):
        x, y = numbers[i], numbers[j]
        rest = tuple(number for k, number in enumerate(numbers) if k not in (i, j))
        for value in {x + y, x - y, y - x, x * y} | ({x / y} if y else set()) | ({y / x} if x else set()):
            found |= reachable((*rest, value))
    return found


def some_problems(count: int, largest: int, number: int) -> list[countdown.Problem]:
    everything = [problem for of_try in countdown.list_problems(count, largest) for problem in of_try]
    return random.Random(0).sample(everything, min(number, len(everything)))


# --- worked solutions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "numbers", "solution"),
    [
        (18, (8, 7, 3), "15:8 7\nanswer 8+7+3"),  # 18-3 = 15 = 8+7
        (5, (6, 3, 3), "2:6 3\nanswer 6/3+3"),  # 5-3 = 2 = 6/3
        (6, (2, 2, 2), "4:2 2\nanswer 2+2+2"),  # 2+2 and 2*2: the first of + - * / is taken
        # 29-3 = 26 is none of 15, 1, 56; 29-7 = 22 none of 11, 5, 24; 29-8 = 21 = 7*3
        (29, (8, 7, 3), "26:8 7\n22:8 3\n21:7 3\nanswer 7*3+8"),
        (29, (8, 3, 3, 2), "29:8 3 5\n24:8 3\nanswer 8*3+(3+2)"),  # 3+2 = 5; 29-5 = 24 = 8*3
        # 4+3 = 7; 39-7 = 32 is none of 9, 1, 20; 39-4 = 35 = 7*5, where the sum is the larger one and comes first
        (39, (5, 4, 4, 3), "39:5 4 7\n32:5 4\n35:7 5\nanswer (4+3)*5+4"),
        # 2+1 = 3, 2+3 = 5; 29-5 = 24 is none of 9, 1, 20; 29-4 = 25 = 5*5
        (29, (5, 4, 2, 2, 1), "29:5 4 2 3\n29:5 4 5\n24:5 4\n25:5 5\nanswer 5*(2+2+1)+4"),
    ],
)
def test_worked_solution_by_hand(target: int, numbers: tuple[int, ...], solution: str) -> None:
    assert countdown.worked_solution(target, numbers) == solution
    assert score(solution, json.dumps({"target": target, "numbers": numbers})) == 1.0


def test_a_guess_stops_at_its_try() -> None:
    assert countdown.worked_solution(39, (5, 4, 4, 3), guess=(1, "-")) == "39:5 4 7\n32:5 4\nanswer 5-4+(4+3)"  # 8, not 39
    # not at the second try, where 7*5 would have been right: 39-5 = 34 comes after it
    assert countdown.worked_solution(39, (5, 4, 4, 3), guess=(3, "+")) == "39:5 4 7\n32:5 4\n35:7 5\n34:7 4\nanswer (4+3)+4+5"
    # the right operation at the right try: nothing wrong with that
    assert countdown.worked_solution(29, (8, 3, 3, 2), guess=(1, "*")) == countdown.worked_solution(29, (8, 3, 3, 2))


def test_unsolvable_and_malformed_problems() -> None:
    with pytest.raises(ValueError, match=r"target=30: no try finds it with numbers=\[8, 7, 3\]"):
        countdown.worked_solution(30, (8, 7, 3))
    for numbers in ((8, 3), (3, 8, 7), (8, 3, 0)):
        with pytest.raises(ValueError, match=r"give at least 3 positive numbers in falling order"):
            countdown.worked_solution(29, numbers)


@pytest.mark.parametrize(("count", "largest"), [(3, 12), (4, 10), (5, 8), (6, 6)])
def test_every_line_is_a_smaller_problem_and_the_answer_is_right(count: int, largest: int) -> None:
    for problem in some_problems(count, largest, 200):
        solution = countdown.worked_solution(problem.target, problem.numbers)
        truth = json.dumps({"numbers": problem.numbers, "target": problem.target})
        assert score(solution, truth) == 1.0
        before = (problem.target, list(problem.numbers))
        *lines, answer = solution.split("\n")
        assert len(lines) == count - 3 + problem.tries and answer.startswith("answer ")
        for line in lines[: count - 3]:  # the last two are added up
            target, numbers = int(line.split(":")[0]), [int(n) for n in line.split(":")[1].split()]
            assert (target, numbers) == (before[0], [*before[1][:-2], sum(before[1][-2:])])
            before = (target, numbers)
        for taken, line in zip((2, 1, 0), lines[count - 3 :], strict=False):  # one is taken off, the larger one comes first
            rest, x, y = int(line.split(":")[0]), *(int(n) for n in line.split(":")[1].split())
            assert rest == before[0] - before[1][taken] >= 0 and x >= y
            assert Counter((x, y)) == Counter(before[1]) - Counter([before[1][taken]])
            hit = rest in {Fraction(x + y), Fraction(x - y), Fraction(x * y), Fraction(x, y)}
            assert hit == (line == lines[-1])


def test_problems_are_all_of_the_search_and_truly_solvable() -> None:
    problems = [problem for of_try in countdown.list_problems(3, 6) for problem in of_try]
    assert len({(p.target, p.numbers) for p in problems}) == len(problems)
    found = {(p.target, p.numbers) for p in problems}
    expected = set()
    for numbers in product(range(1, 7), repeat=3):
        for x, y, z in permutations(numbers):
            for value in (Fraction(x + y), Fraction(x - y), Fraction(x * y), Fraction(x, y)):
                if value >= 0 and value.denominator == 1 and value + z >= max(numbers):
                    expected.add((int(value) + z, tuple(sorted(numbers, reverse=True))))
    assert found == expected
    assert all(target in reachable(tuple(map(Fraction, numbers))) for target, numbers in found)


def test_problems_of_four_numbers_are_truly_solvable() -> None:
    for problem in some_problems(4, 9, 12):
        assert problem.target in reachable(tuple(map(Fraction, problem.numbers)))


def test_problems_by_try() -> None:
    for count in (3, 4):
        for tries, problems in enumerate(countdown.list_problems(count, 5), start=1):
            assert problems and {problem.tries for problem in problems} == {tries}


# --- verifier --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer 8*3+3+2", 1.0),
        ("answer 8*3+(3+2)", 1.0),
        ("answer (3+2)+3*8", 1.0),  # any order
        ("answer 8 * 3 + 3 + 2", 1.0),
        ("answer -3-2+8*3+10", 0.0),  # 29, but 10 is not given
        ("answer 3*8-(-3-2)", 1.0),  # a sign is an operation
        ("no working at all, or a wrong one\nanswer 8*3+3+2", 1.0),  # an outcome reward
        ("answer 8*3+3-2", 0.0),  # 25
        ("answer 8*3+5", 0.0),  # 29 with other numbers
        ("answer 29", 0.0),
        ("answer 8*3+3+2+0", 0.0),  # one number too many
        ("answer 8*3+3", 0.0),  # one too few
        ("answer 8*3+2+2", 0.0),  # 28, and 2 is given once
        ("answer 83/3+2", 0.0),  # digits glued together
        ("answer 8*3+3+2=29", 0.0),
        ("answer 8*3+3+2 ", 0.0),  # trailing garbage, white space included
        ("answer 8*3+3+2\n", 0.0),
        ("answer 8*3+3+2\n24:8 3", 0.0),
        ("answer 8*3+3+2<|end|>", 0.0),
        ("answer  8*3+3+2", 0.0),
        ("answer\t8*3+3+2", 0.0),
        ("8*3+3+2", 0.0),  # no answer
        ("answer", 0.0),
        ("answer ", 0.0),
        ("", 0.0),
        ("Answer 8*3+3+2", 0.0),
        ("the answer 8*3+3+2", 0.0),  # not at the start of a line
        ("answer 8*3+3+2\nanswer 8*3+3+2", 0.0),  # several answers: none counts, even if they agree
        ("answer 8*3+2+2\nanswer 8*3+3+2", 0.0),
        ("answers\nanswer 8*3+3+2", 0.0),
        ("answer 8*3+3+2.0", 0.0),
        ("answer 8*3+03+2", 0.0),
        ("answer 8*3+3+\u0662", 0.0),  # Arabic-Indic 2
        ("answer \uff18*3+3+2", 0.0),  # full-width 8
        ("answer 8*3+3+2\x00", 0.0),
        ("x\ranswer 8*3+3+2", 0.0),  # only a newline starts a line
        ("answer 8/0+3+3+2", 0.0),
        ("answer 9**9**9", 0.0),
        ("answer __import__('os').abort()", 0.0),
        ("answer " + "(" * 5000, 0.0),
    ],
)
def test_verifier_cases(text: str, expected: float) -> None:
    assert score(text) == expected


def test_fractions_on_the_way_are_exact() -> None:
    # 8/(3-8/3) = 8/(1/3) = 24
    truth = '{"numbers": [8, 8, 3, 3], "target": 24}'
    assert score("answer 8/(3-8/3)", truth) == 1.0
    assert score("answer 8/(3-8/3)", truth.replace("24", "23")) == 0.0


fragments = st.sampled_from(
    ["answer ", "answer", "\n", "8*3", "+3", "+2", "+(3+2)", "(", ")", " ", "\nanswer 8*3+3+2", "9**9", "\ud800"]
)


@given(st.one_of(st.text(), st.lists(fragments, max_size=12).map("".join)))
def test_only_exact_text_scores(text: str) -> None:
    """Against an independent statement of the rule: the last line is a right formula, and there is no other marker."""
    *head, last = text.split("\n")
    right = last.startswith("answer ") and not any("answer" in line for line in (*head, last[1:]))
    if right:
        try:
            formula = evaluate(last.removeprefix("answer "))
            right = formula.value == 29 and formula.numbers == (2, 3, 3, 8)
        except FormulaError:
            right = False
    assert score(text) == float(right)


@pytest.mark.parametrize("text", ["answer " * 300_000, "answer " + "1+" * 1_000_000, "\n" * 2_000_000 + "answer 8*3+3+2 "])
def test_long_text_takes_linear_time(text: str) -> None:
    start = time.perf_counter()
    assert score(text) == 0.0
    assert time.perf_counter() - start < 1.0  # milliseconds if linear, hours if quadratic


@pytest.mark.parametrize(
    ("truth", "error", "message"),
    [
        ({"target": 29, "numbers": [8, 3]}, TypeError, r"data_source='countdown_easy' must be text, got dict; give JSON"),
        ("29", ValueError, r"='29'; give JSON"),
        ("", ValueError, r"is no JSON"),
        ('{"target": 29}', ValueError, r"; give JSON text such as"),
        ('{"target": 29, "numbers": 8}', ValueError, r"; give JSON text such as"),
        ('{"target": "29", "numbers": [8, 3]}', ValueError, r"something else than whole numbers"),
        ('{"target": 29, "numbers": [8, 3.0]}', ValueError, r"something else than whole numbers"),
        ('{"target": true, "numbers": [8, 3]}', ValueError, r"something else than whole numbers"),
    ],
)
def test_a_bad_ground_truth_is_a_defect_of_the_data(truth: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        countdown.compute_score("countdown_easy", "answer 12", truth)  # type: ignore[arg-type]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_have_the_numbers_asked_for() -> None:
    rows = countdown.build_rows(SPLITS, largest=6, seed=0)
    counts = Counter((row["data_source"], row["extra_info"]["split"]) for row in rows)
    assert counts == {
        ("countdown_hard", "train"): 40,
        ("countdown_easy", "test"): 12,
        ("countdown_hard", "test"): 9,
        ("countdown_ood", "test"): 8,
    }
    for role, size in (("train", 40), ("test", 29)):
        of_role = [row for row in rows if row["extra_info"]["split"] == role]
        assert [row["extra_info"]["index"] for row in of_role] == list(range(size))
    # 12 easy rows: 4 of each number of tries; 8 ood rows: 4 of five numbers, 4 of six
    assert Counter(row["extra_info"]["tries"] for row in rows if row["data_source"] == "countdown_easy") == {1: 4, 2: 4, 3: 4}
    assert Counter(row["extra_info"]["numbers"] for row in rows if row["data_source"] == "countdown_ood") == {5: 4, 6: 4}


def test_rows_are_consistent_and_their_demonstrations_verify() -> None:
    for row in countdown.build_rows(SPLITS, largest=6, seed=0):
        truth = json.loads(row["reward_model"]["ground_truth"])
        target, solution = row["target"][0]["content"], score(row["target"][0]["content"], row["reward_model"]["ground_truth"])
        assert solution == 1.0 and "".join(row["hint"]) == target
        assert all(line.endswith("\n") for line in row["hint"][:-1]) and row["hint"][-1].startswith("answer ")
        assert row["prompt"] == [{"role": "user", "content": countdown.question(truth["target"], truth["numbers"])}]
        assert row["target"][0]["role"] == "assistant"
        assert (row["ability"], row["reward_model"]["style"]) == ("countdown", "rule")
        assert len(truth["numbers"]) == row["extra_info"]["numbers"] and 1 <= min(truth["numbers"]) <= max(truth["numbers"]) <= 6


@given(seed=st.integers(0, 10**6), test=st.integers(1, 30))
def test_no_problem_twice_even_when_all_are_used(seed: int, test: int) -> None:
    most = 3 * min(map(len, countdown.list_problems(3, 6)))
    splits = {
        "easy": {"numbers": [3], "train": 0, "test": test},
        "hard": {"numbers": [3], "train": most - 30, "test": 30 - test},
    }
    prompts = [row["prompt"][0]["content"] for row in countdown.build_rows(splits, 6, seed)]
    assert len(prompts) == len(set(prompts)) == most


def test_rows_depend_on_the_seed_alone() -> None:
    assert countdown.build_rows(SPLITS, 6, 1) == countdown.build_rows(copy.deepcopy(SPLITS), 6, 1)
    assert countdown.build_rows(SPLITS, 6, 1) != countdown.build_rows(SPLITS, 6, 2)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (changed("medium.numbers", [3]), r"splits.medium: unknown split; use one of easy, hard, ood"),
        (changed("easy.numbers", [2]), r"splits.easy.numbers=\[2\]: 2 is no count of numbers; use integers from 3 to 6"),
        (changed("ood.numbers", [7]), r"splits.ood.numbers=\[7\]: 7 is no count of numbers; use integers from 3 to 6"),
        (changed("easy.digits", [3]), r"give exactly the keys numbers, train and test"),
        (changed("ood.numbers", [4, 5]), r"splits.ood.*use train: 0 and numbers above 4"),
        (
            changed("easy.test", 10_000),
            r"splits.easy.test: 10000 distinct problems of numbers=3 .* exist.*fewer rows or more numbers",
        ),
    ],
)
def test_bad_split_settings(splits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        countdown.build_rows(splits, 6, 0)


@pytest.mark.parametrize("largest", [1, 21, 6.0, "6", True])
def test_bad_largest(largest: object) -> None:
    with pytest.raises(ValueError, match=r"largest=.*an integer from 2 to 20"):
        countdown.build_rows(SPLITS, largest, 0)  # type: ignore[arg-type]


# --- files -----------------------------------------------------------------------------------------------------------


def test_written_files_have_exactly_the_documented_schema(tmp_path: Path) -> None:
    paths = PREPARERS["countdown"](tmp_path / "data", OmegaConf.create(SETTINGS))
    assert paths == {"train": tmp_path / "data" / "train.parquet", "test": tmp_path / "data" / "test.parquet"}
    rows = countdown.build_rows(SPLITS, 6, 3)
    for role, path in paths.items():
        table = pq.read_table(path)
        assert table.schema.equals(countdown.SCHEMA)
        assert table.to_pylist() == [row for row in rows if row["extra_info"]["split"] == role]


def test_other_settings_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = countdown.write_splits(tmp_path, SETTINGS)["train"].read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(countdown, "build_rows", lambda *_: pytest.fail("rebuilt although nothing changed"))
        countdown.write_splits(tmp_path, SETTINGS)
    assert countdown.write_splits(tmp_path, {**SETTINGS, "largest": 7})["train"].read_bytes() != before
    assert countdown.write_splits(tmp_path, SETTINGS)["train"].read_bytes() == before


@pytest.mark.parametrize("settings", [{"seed": 3, "splits": SPLITS}, {**SETTINGS, "rows": 3}])
def test_unknown_or_missing_settings(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(ValueError, match=r"settings of the countdown task.*give exactly seed and largest and splits"):
        countdown.write_splits(tmp_path, settings)


def test_the_shipped_configuration_fits_its_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFY_HOME", "/home/of/runs")
    assert (CONF / "task" / "countdown.yaml").read_text().startswith("# @package _global_\n")
    config = OmegaConf.load(CONF / "task" / "countdown.yaml")
    assert config.data.train_files == f"{config.prepare.task.folder}/train.parquet"
    assert config.data.val_files == "/home/of/runs/data/countdown/test.parquet"
    task = files.plain(config.prepare.task)
    rows = countdown.build_rows(task["splits"], task["largest"], task["seed"])
    assert {row["data_source"] for row in rows if row["extra_info"]["split"] == "train"} == {"countdown_hard"}
    # one token per character, plus eos; the prompt has three special tokens around it
    assert max(len(row["target"][0]["content"]) for row in rows) + 1 <= config.data.max_response_length
    assert max(len(row["prompt"][0]["content"]) for row in rows) + 3 <= config.data.max_prompt_length


# --- pretraining examples --------------------------------------------------------------------------------------------


def test_pretraining_examples_are_right_except_where_careless() -> None:
    source = countdown.PretrainingExamples(
        {"largest": 9, "numbers": {"3": 0.5, 4: 0.5}, "careless": {"4": 1.0}, "stops": [1, 0, 0]}
    )
    right: Counter[tuple[int, float]] = Counter()
    tries: Counter[int] = Counter()
    question_length, solution_length = map(len, source.longest)
    for question, solution in source.draw(random.Random(0), 600):
        target, numbers = question.split(":")
        values = [int(number) for number in numbers.split()]
        right[len(values), score(solution, json.dumps({"numbers": values, "target": int(target)}))] += 1
        tries[solution.count("\n")] += len(values) == 3
        assert len(question) <= question_length and len(solution) <= solution_length
    assert right[3, 0.0] == 0 and right[3, 1.0] > 250
    # a third is solved at the first try, of these a third by the guess; + and * may both be right, and so on
    assert 0.05 < right[4, 1.0] / (right[4, 0.0] + right[4, 1.0]) < 0.2
    assert min(tries[1], tries[2], tries[3]) > 60  # a third each


def test_guesses_are_made_at_the_tries_asked_for() -> None:
    source = countdown.PretrainingExamples({"largest": 9, "numbers": {3: 1.0}, "careless": {3: 1.0}, "stops": [0, 3, 1]})
    stops = Counter(solution.count("\n") for _, solution in source.draw(random.Random(0), 400))
    assert set(stops) == {2, 3} and 0.65 < stops[2] / 400 < 0.85


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stops", [1, 1], r"pretraining.stops=\[1, 1\]: give 3 shares >= 0, one above 0"),
        ("stops", [0, 0, 0], r"pretraining.stops="),
        ("stops", [2, -1, 0], r"pretraining.stops="),
        ("largest", 21, r"largest=21"),
        ("numbers", {2: 1.0}, r"pretraining.numbers=\{2: 1.0\}: 2 is no count of numbers; use integers from 3 to 6"),
        ("careless", {5: 1.0}, r"pretraining.careless=\{5: 1.0\}: .* in pretraining.numbers"),
    ],
)
def test_bad_pretraining_settings(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        countdown.PretrainingExamples({"largest": 9, "numbers": {3: 1.0}, "careless": {}, "stops": [1, 1, 1], key: value})


def test_pretraining_examples_depend_on_the_generator_alone() -> None:
    source = countdown.PretrainingExamples({"largest": 9, "numbers": {3: 0.5, 4: 0.5}, "careless": {}, "stops": [1, 1, 1]})
    assert source.draw(random.Random(1), 9) == source.draw(random.Random(1), 9) != source.draw(random.Random(2), 9)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_no_solution_is_longer_than_the_longest(count: int) -> None:
    source = countdown.PretrainingExamples({"largest": 6, "numbers": {count: 1.0}, "careless": {}, "stops": [1, 1, 1]})
    question, solution = source.longest
    for of_try in countdown.list_problems(count, 6):
        assert max(len(countdown.question(p.target, p.numbers)) for p in of_try) <= len(question)
        assert max(len(countdown.worked_solution(p.target, p.numbers)) for p in of_try) <= len(solution)


def test_numbers_nested_without_end_are_a_defect_of_the_row() -> None:
    deep = '{"target": 29, "numbers": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(ValueError, match="is no JSON") as error:
        countdown.compute_score("countdown", "answer 1", deep)
    assert len(str(error.value)) < 1000
