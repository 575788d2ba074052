"""The arithmetic task: worked solutions, the verifier against honest and adversarial text, the splits and the files."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from unify_posttrain.tasks import arithmetic, files

CONF = Path(__file__).parents[2] / "conf"
SPLITS = {
    "easy": {"digits": [1, 2], "train": 0, "test": 12},
    "hard": {"digits": [3], "train": 40, "test": 10},
    "ood": {"digits": [4, 5], "train": 0, "test": 8},
}
SETTINGS = {"name": "arithmetic", "folder": "ignored", "seed": 3, "splits": SPLITS}


def score(text: str, truth: str) -> float:
    result = arithmetic.compute_score("arithmetic_hard", text, truth, extra_info={"index": 0}, unknown_keyword=1)
    assert set(result) == {"score", "acc"} and result["score"] == result["acc"]
    assert all(type(value) is float for value in result.values())
    return result["score"]


def changed(path: str, value: object) -> dict:
    """A copy of SPLITS with one value replaced, e.g. changed("easy.digits", [0])."""
    splits = copy.deepcopy(SPLITS)
    name, key = path.split(".")
    splits.setdefault(name, {})[key] = value
    return splits


def problem(row: dict) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in row["prompt"][0]["content"].rstrip("=").split("+")))


# --- worked solutions ------------------------------------------------------------------------------------------------


def test_worked_solution_by_hand() -> None:
    # 8+7=15, carry 1; 5+6+1=12, carry 1; the sum is 125
    assert arithmetic.worked_solution(58, 67) == "8+7+0=15\n5+6+1=12\nanswer 125"
    assert arithmetic.worked_solution(0, 0) == "0+0+0=00\nanswer 0"
    # operands of unequal length are padded with zeros
    assert arithmetic.worked_solution(9, 91) == "9+1+0=10\n0+9+1=10\nanswer 100"


def test_careless_solutions_forget_carries_but_not_the_last() -> None:
    # 8+7=15 and the 1 is lost: 5+6+0=11, read together 115
    assert arithmetic.worked_solution(58, 67, careless=True) == "8+7+0=15\n5+6+0=11\nanswer 115"
    # no carry before the last line: nothing to forget
    assert arithmetic.worked_solution(51, 67, careless=True) == arithmetic.worked_solution(51, 67)


def test_worked_solution_refuses_negative_operands() -> None:
    with pytest.raises(ValueError, match="non-negative, got a=-1"):
        arithmetic.worked_solution(-1, 2)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_worked_solution_is_right_and_short(a: int, b: int) -> None:
    solution = arithmetic.worked_solution(a, b)
    *lines, answer = solution.split("\n")
    carry, digits = 0, ""
    for line in lines:
        left, right = line.split("=")
        assert sum(map(int, left.split("+"))) == int(right) and int(left[-1]) == carry
        carry, digits = int(right[0]), right[1] + digits
    assert int(f"{carry}{digits}") == a + b and answer == f"answer {a + b}"
    # 8 characters and a newline per digit, "answer ", and at most one digit more than the longer operand
    width = max(len(str(a)), len(str(b)))
    assert len(solution) <= 9 * width + 7 + width + 1
    assert score(solution, str(a + b)) == 1.0


# --- verifier --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer 12", 1.0),
        ("working that is wrong\nanswer 12", 1.0),  # an outcome reward: the working is not checked
        ("answer 13", 0.0),
        ("answer 1", 0.0),
        ("answer 012", 0.0),  # leading zero
        ("answer +12", 0.0),
        ("answer -12", 0.0),
        ("answer 12.0", 0.0),
        ("answer 1_2", 0.0),  # what int() would take
        ("answer  12", 0.0),
        ("answer\t12", 0.0),
        ("answer 12 ", 0.0),  # trailing garbage, white space included
        ("answer 12\n", 0.0),
        ("answer 12\n\n3+4+0=07", 0.0),
        ("answer 12<|end|>", 0.0),
        ("12", 0.0),  # no answer
        ("answer", 0.0),
        ("answer ", 0.0),
        ("", 0.0),
        ("Answer 12", 0.0),
        ("the answer 12", 0.0),  # not at the start of a line
        ("answer 12\nanswer 12", 0.0),  # several answers: none counts, even if they agree
        ("answer 13\nanswer 12", 0.0),
        ("answers\nanswer 12", 0.0),
        ("answer answer 12", 0.0),
        ("answer \u0661\u0662", 0.0),  # Arabic-Indic 12
        ("answer \uff11\uff12", 0.0),  # full-width 12
        ("answer 12\x00", 0.0),
        ("x\ranswer 12", 0.0),  # only a newline starts a line
    ],
)
def test_verifier_cases(text: str, expected: float) -> None:
    assert score(text, "12") == expected


def test_zero_is_an_answer_and_double_zero_is_not() -> None:
    assert score("0+0+0=00\nanswer 0", "0") == 1.0
    assert score("answer 00", "0") == 0.0


def test_answer_length_is_bounded() -> None:
    longest = "9" * arithmetic.MAX_ANSWER_DIGITS
    assert score(f"answer {longest}", longest) == 1.0
    assert score(f"answer {longest}9", f"{longest}9") == 0.0


fragments = st.sampled_from(["answer ", "answer", "\n", "12", "0", " ", "\nanswer 12", "\u0661", "9" * 70, "\ud800"])


@given(st.one_of(st.text(), st.lists(fragments, max_size=12).map("".join)))
@example("answer 12" * 3)
def test_only_exact_text_scores(text: str) -> None:
    """Against an independent statement of the rule: the last line is exactly the answer, and no other marker."""
    *head, last = text.split("\n")
    assert score(text, "12") == float(last == "answer 12" and not any("answer" in line for line in head))


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_another_number_never_scores(truth: int, said: int) -> None:
    assert score(f"answer {said}", str(truth)) == float(truth == said)


@pytest.mark.parametrize("text", ["answer " * 300_000, "answer " + "1" * 2_000_000, "\n" * 2_000_000 + "answer 12 "])
def test_long_text_takes_linear_time(text: str) -> None:
    start = time.perf_counter()
    assert score(text, "12") == 0.0
    assert time.perf_counter() - start < 1.0  # milliseconds if linear, hours if quadratic


def test_ground_truth_of_a_wrong_type_is_a_defect_of_the_data() -> None:
    with pytest.raises(TypeError, match=r"reward_model.ground_truth of data_source='arithmetic_easy'.*got int"):
        arithmetic.compute_score("arithmetic_easy", "answer 12", 12)  # type: ignore[arg-type]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_have_the_numbers_asked_for() -> None:
    rows = arithmetic.build_rows(SPLITS, seed=0)
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row["data_source"], row["extra_info"]["split"])
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        ("arithmetic_hard", "train"): 40,
        ("arithmetic_easy", "test"): 12,
        ("arithmetic_hard", "test"): 10,
        ("arithmetic_ood", "test"): 8,
    }
    for role, size in (("train", 40), ("test", 30)):
        of_role = [row for row in rows if row["extra_info"]["split"] == role]
        assert [row["extra_info"]["index"] for row in of_role] == list(range(size))
    # digit counts of a split take turns: 12 easy rows are 6 of one digit and 6 of two
    assert [row["extra_info"]["digits"] for row in rows if row["data_source"] == "arithmetic_easy"].count(1) == 6


def test_rows_are_consistent_and_their_demonstrations_verify() -> None:
    for row in arithmetic.build_rows(SPLITS, seed=0):
        truth, (a, b) = row["reward_model"]["ground_truth"], problem(row)
        assert truth == str(a + b)
        assert score(row["target"][0]["content"], truth) == 1.0
        # a sentence per line: the newline belongs to the line, so that any first lines are a prefix of the target
        assert len(row["hint"]) == row["extra_info"]["digits"] + 1
        assert all(line.endswith("\n") for line in row["hint"][:-1]) and "".join(row["hint"]) == row["target"][0]["content"]
        assert {len(str(a)), len(str(b))} == {row["extra_info"]["digits"]}
        assert (row["prompt"][0]["role"], row["target"][0]["role"]) == ("user", "assistant")
        assert (row["ability"], row["reward_model"]["style"]) == ("arithmetic", "rule")


@given(seed=st.integers(0, 10**6), test=st.integers(1, 15))
def test_no_problem_twice_even_when_all_are_used(seed: int, test: int) -> None:
    # one-digit sums: 10 * 11 / 2 = 55 unordered pairs; use all of them, over train and test and two splits
    splits = {
        "easy": {"digits": [1], "train": 0, "test": test},
        "hard": {"digits": [1], "train": 40, "test": 15 - test},
    }
    problems = [problem(row) for row in arithmetic.build_rows(splits, seed)]
    assert len(problems) == len(set(problems)) == 55


def test_rows_depend_on_the_seed_alone() -> None:
    assert arithmetic.build_rows(SPLITS, 1) == arithmetic.build_rows(copy.deepcopy(SPLITS), 1)
    assert arithmetic.build_rows(SPLITS, 1) != arithmetic.build_rows(SPLITS, 2)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_ranks_enumerate_every_unordered_pair_once(digits: int) -> None:
    operands, total = arithmetic.operand_range(digits), arithmetic.count_problems(digits)
    pairs = {arithmetic._problem(rank, operands) for rank in range(total)}
    assert len(pairs) == total and all(a >= b for a, b in pairs)
    assert {number for pair in pairs for number in pair} == set(operands)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (changed("medium.digits", [3]), r"splits.medium: unknown split; use one of easy, hard, ood"),
        (changed("easy.digits", [0]), r"splits.easy.digits=\[0\]: 0 is no digit count; use integers >= 1"),
        (changed("easy.digits", [True]), r"True is no digit count"),
        (changed("easy.digits", []), r"splits.easy.digits=\[\]: give a non-empty list"),
        (changed("easy.digits", 2), r"splits.easy.digits=2: give a non-empty list"),
        (changed("easy.digits", [2, 2]), r"repeated; name each one once"),
        (changed("easy.rows", 3), r"give exactly the keys digits, train and test"),
        (changed("easy.test", -1), r"splits.easy.test=-1: give a number of rows"),
        (changed("easy.test", 2.5), r"splits.easy.test=2.5: give a number of rows"),
        (changed("hard.train", 0), r"splits.\*.train: no split has a row for train.parquet"),
        (changed("ood.digits", [3, 5]), r"splits.ood.*use train: 0 and digits above 3"),
        (changed("ood.train", 5), r"splits.ood.*use train: 0"),
        # 55 one-digit problems exist; 112 easy rows over digits [1, 2] want 56 of them
        (changed("easy.test", 112), r"splits.easy.test: 56 distinct problems of digits=1 .* only 55 exist.*fewer rows"),
    ],
)
def test_bad_split_settings(splits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arithmetic.build_rows(splits, 0)


def test_rows_by_hand() -> None:
    """Rows of one seed, all columns: what they hold must not change without a new MANIFEST_FORMAT."""
    rows = arithmetic.build_rows({"hard": {"digits": [2], "train": 1, "test": 1}}, seed=0)
    assert rows[0] == {
        "data_source": "arithmetic_hard",
        "prompt": [{"role": "user", "content": "65+92="}],
        "target": [{"role": "assistant", "content": "5+2+0=07\n6+9+0=15\nanswer 157"}],
        "hint": ["5+2+0=07\n", "6+9+0=15\n", "answer 157"],
        "ability": "arithmetic",
        "reward_model": {"style": "rule", "ground_truth": "157"},
        "extra_info": {"index": 0, "split": "train", "digits": 2},
    }
    assert rows[1]["prompt"][0]["content"] == "65+47=" and rows[1]["extra_info"] == {"index": 0, "split": "test", "digits": 2}


def test_pretraining_examples_forget_carries_as_often_as_asked() -> None:
    source = arithmetic.PretrainingExamples({"digits": {"2": 0.5, 3: 0.5}, "careless": {"3": 1.0}})
    question_length, solution_length = map(len, source.longest)
    for question, solution in source.draw(random.Random(0), 200):
        a, b = (int(part) for part in question.rstrip("=").split("+"))
        assert solution == arithmetic.worked_solution(a, b, careless=a > 99)
        assert len(question) <= question_length and len(solution) <= solution_length


def test_pretraining_draws_by_hand() -> None:
    """The first draws of the shipped base model: other ones would be another base model, which needs a new MARKER_FORMAT."""
    training = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "tiny_qwen2.yaml").prepare.model.pretraining)
    assert arithmetic.PretrainingExamples(training).draw(random.Random(0), 3) == [
        ("5242+9376=", "2+6+0=08\n4+7+0=11\n2+3+0=05\n5+9+0=14\nanswer 14518"),  # careless: 2+3+1 would be right
        ("8961+7634=", "1+4+0=05\n6+3+0=09\n9+6+0=15\n8+7+0=15\nanswer 15595"),
        ("902+949=", "2+9+0=11\n0+4+1=05\n9+9+0=18\nanswer 1851"),
    ]


# --- files -----------------------------------------------------------------------------------------------------------


def test_written_files_have_exactly_the_documented_schema(tmp_path: Path) -> None:
    paths = arithmetic.write_splits(tmp_path / "data", SETTINGS)
    assert paths == {"train": tmp_path / "data" / "train.parquet", "test": tmp_path / "data" / "test.parquet"}
    rows = arithmetic.build_rows(SPLITS, 3)
    for role, path in paths.items():
        table = pq.read_table(path)
        assert table.schema.equals(arithmetic.SCHEMA)
        assert table.to_pylist() == [row for row in rows if row["extra_info"]["split"] == role]


def test_datasets_reads_the_files(tmp_path: Path) -> None:
    import datasets  # here, as it takes seconds to import and one test needs it

    paths, rows = arithmetic.write_splits(tmp_path / "data", SETTINGS), arithmetic.build_rows(SPLITS, 3)
    loaded = datasets.load_dataset("parquet", data_files=str(paths["test"]), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["prompt"] == [{"role": "user", "content": rows[40]["prompt"][0]["content"]}]
    assert loaded[0]["extra_info"] == {"index": 0, "split": "test", "digits": 1}
    assert sorted(set(loaded["data_source"])) == ["arithmetic_easy", "arithmetic_hard", "arithmetic_ood"]


def test_manifest_and_cheap_second_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = arithmetic.write_splits(tmp_path, SETTINGS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format"] == arithmetic.MANIFEST_FORMAT and manifest["rows"] == {"train.parquet": 40, "test.parquet": 30}
    assert manifest["settings"] == {"seed": 3, "splits": SPLITS}
    assert sorted(manifest["sha256"]) == ["test.parquet", "train.parquet"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "test.parquet", "train.parquet"]

    monkeypatch.setattr(arithmetic, "build_rows", lambda *_: pytest.fail("rebuilt although nothing changed"))
    assert arithmetic.write_splits(tmp_path, OmegaConf.create(SETTINGS)) == paths


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_damaged_files_are_rebuilt(tmp_path: Path, damage: str) -> None:
    train = arithmetic.write_splits(tmp_path, SETTINGS)["train"]
    good = train.read_bytes()
    if damage == "truncate":
        train.write_bytes(good[:-1])
    elif damage == "remove":
        train.unlink()
    else:
        (tmp_path / "manifest.json").write_text("{")
    arithmetic.write_splits(tmp_path, SETTINGS)
    assert train.read_bytes() == good
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["seed"] == 3


def test_other_settings_rebuild(tmp_path: Path) -> None:
    before = arithmetic.write_splits(tmp_path, SETTINGS)["train"].read_bytes()
    after = arithmetic.write_splits(tmp_path, {**SETTINGS, "seed": 4})["train"].read_bytes()
    assert before != after
    assert arithmetic.write_splits(tmp_path, SETTINGS)["train"].read_bytes() == before


@pytest.mark.parametrize("settings", [{"splits": SPLITS}, {**SETTINGS, "rows": 3}])
def test_unknown_or_missing_settings(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(ValueError, match="give exactly seed and splits"):
        arithmetic.write_splits(tmp_path, settings)


def test_the_shipped_configuration_fits_its_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFY_HOME", "/home/of/runs")
    assert (CONF / "task" / "arithmetic.yaml").read_text().startswith("# @package _global_\n")
    config = OmegaConf.load(CONF / "task" / "arithmetic.yaml")
    assert config.data.train_files == f"{config.prepare.task.folder}/train.parquet"
    assert config.data.val_files == "/home/of/runs/data/arithmetic/test.parquet"
    longest = max(config.prepare.task.splits.ood.digits)
    biggest = 10**longest - 1
    # one token per character, plus eos; the prompt has three special tokens around it
    assert len(arithmetic.worked_solution(biggest, biggest)) + 1 <= config.data.max_response_length
    assert len(arithmetic.question(biggest, biggest)) + 3 <= config.data.max_prompt_length
    rows = arithmetic.build_rows(files.plain(config.prepare.task.splits), config.prepare.task.seed)
    assert {row["data_source"] for row in rows if row["extra_info"]["split"] == "train"} == {"arithmetic_hard"}
