"""The reward function and its manager before Ray, through the checks of a run and through the command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import datasets
import pytest
from omegaconf import DictConfig

from tests import forks
from unify_posttrain.config import compose_config
from unify_posttrain.startup.reward_trial import check_reward_function

pytestmark = pytest.mark.slow

PATH = "reward.custom_reward_function.path"
LONGEST = "reward.protection.load_seconds=60"


def composed(*overrides: str) -> DictConfig:
    return compose_config(["algorithm=grpo", *overrides])


def rows(**columns: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "row_id": [0, 1, 2],
            "data_source": ["sums", "sums", "words"],
            "prompt": [[{"role": "user", "content": "1+1="}]] * 3,
            "target": ["answer 2", "answer 2", None],
            "reward_model": [{"style": "rule", "ground_truth": "2"}] * 3,
            "extra_info": [{"index": number} for number in range(3)],
            **columns,
        }
    )


def test_the_function_is_called_with_the_targets_of_the_data(tmp_path: Path) -> None:
    file, seen = tmp_path / "mine.py", tmp_path / "seen"
    file.write_text(
        "import json\n"
        "def compute_score(**arguments):\n"
        f"    open({str(seen)!r}, 'a').write(json.dumps(arguments, sort_keys=True) + chr(10))\n"
        "    return 1.0\n"
    )
    check_reward_function(composed(f"{PATH}={file}", "reward.protection.trial_rows=1"), [rows(), rows()])
    lines = seen.read_text().splitlines()
    assert lines[0] == (
        '{"data_source": "sums", "extra_info": {"index": 0, "num_turns": 2, "rollout_reward_scores": {}}, '
        '"ground_truth": "2", "solution_str": "answer 2"}'
    )
    assert len(lines) == 4 and '"solution_str": ""' in lines[1], "the first row, and the first of the other source, of both splits"


def test_a_field_of_the_name_of_a_column_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def compute_score(**_): return {'score': 1.0, 'difficulty': 3}\n")
    check_reward_function(composed(f"{PATH}={file}"), [rows()])
    with pytest.raises(ValueError, match=r"field 'difficulty', a name that the batch has for something else; rename it"):
        check_reward_function(composed(f"{PATH}={file}"), [rows(difficulty=[1, 2, 3])])


def test_graders_that_evaluate_are_found_behind_a_function_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from verl.utils.reward_score import default_compute_score\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    try:\n"
        "        return default_compute_score(data_source, solution_str, ground_truth)\n"
        "    except Exception:\n"
        "        return 0.0\n"
    )
    generous = composed(f"{PATH}={file}", "reward.protection.timeout_seconds=120")
    check_reward_function(generous, [rows(data_source=["openai/gsm8k"] * 3)])
    with pytest.raises(ValueError, match=r"prime_code runs programs that a model wrote; set reward\.custom_reward_function"):
        check_reward_function(generous, [rows(data_source=["openai/gsm8k", "openai/gsm8k", "codeforces"])])


MANAGERS = [
    (["reward.reward_manager.name=nave"], r"name=nave is unknown; choose one of dapo, gdpo, naive, rate_limited, remote"),
    (["reward.reward_manager.name=prime"], r"name=prime is unknown, which verl's old rewards knew; choose one of"),
    (["reward.reward_manager.source=here"], r"source=here is unknown; choose one of register, importlib"),
    (["reward.reward_manager.source=importlib"], r"module\.path is not set"),
    (
        ["reward.reward_manager.source=importlib", "reward.reward_manager.module.path=/nowhere.py"],
        r"module\.path=/nowhere\.py: naive cannot be loaded \(FileNotFoundError",
    ),
    (
        [
            "reward.reward_manager.source=importlib",
            "reward.reward_manager.module.path=pkg://collections",
            "reward.reward_manager.name=OrderedDict",
        ],
        "is no reward manager: derive it from verl's RewardManagerBase",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MANAGERS, ids=[each[0][-1].rpartition(".")[2] for each in MANAGERS])
def test_reward_managers(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_reward_function(composed(*overrides))


@pytest.mark.parametrize("name", ["naive", "dapo", "gdpo", "rate_limited", "remote"])
def test_every_manager_of_verl_is_known(name: str) -> None:
    check_reward_function(composed(f"reward.reward_manager.name={name}"))


BROKEN = {
    "missing file": (None, "mine.py does not exist; check the path"),
    "syntax": ("def compute_score(:", "cannot be imported: SyntaxError"),
    "import": ("import no_such_module", "No module named 'no_such_module'"),
    "function": ("def scores(**_): return 1.0", "has no such function; it defines scores"),
    "signature": ("def compute_score(text): return 1.0", "takes (text), but is called with data_source=…"),
    "exit": ("import os; os._exit(3)", "cannot be loaded: it ended"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_loaded_is_said_before_anything_starts(kind: str, tmp_path: Path) -> None:
    source, message = BROKEN[kind]
    file = tmp_path / "mine.py"
    if source is not None:
        file.write_text(source)
    with pytest.raises(ValueError) as error:
        check_reward_function(composed(f"{PATH}={file}"))
    assert message in str(error.value) and str(file) in str(error.value)
    assert str(error.value).startswith("reward.custom_reward_function.")


def test_the_dry_run_says_it_in_one_line(tmp_path: Path) -> None:
    """Through the command, on a machine without the data: the function is loaded all the same."""
    command = [sys.executable, "-m", "unify_posttrain.train", "algorithm=grpo", f"{PATH}={tmp_path}/mine.py", "+dry_run=true"]
    done = forks.run(command, env={**os.environ, "UNIFY_HOME": str(tmp_path)}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"error: {PATH}={tmp_path}/mine.py does not exist; check the path"
