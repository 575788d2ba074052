"""What all environments share: settings, fields, the end of an episode, the reward function, and a player that answers anything."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.tasks.environments import RandomPlayer, hand_row, node, possible_rewards, row_of, task_settings
from unify_posttrain.config import compose_config
from unify_posttrain.rewards.contract import RESERVED, Contract
from unify_posttrain.tasks import PREPARERS
from unify_posttrain.tasks.environment import ENVIRONMENTS, compute_score, make_environment
from unify_posttrain.tasks.episodes import SCORES, EpisodeSettings, read_settings, trajectory_score
from unify_posttrain.tasks.general_points import rows as hands
from unify_posttrain.tasks.matrix_rows import Settings as MatrixSettings
from unify_posttrain.tasks.matrix_rows import build_rows as matrix_rows
from unify_posttrain.tasks.navigation import rows as positions
from unify_posttrain.tasks.truths import check_own_truths
from unify_posttrain.tasks.turns import Verdict

RIGHT, WRONG = '{"formula": "(1+2+3)*4=24"}', '{"formula": "1+2+3+4=24"}'
ROW = hand_row("A 2 3 4")
# Environments whose demonstrations are right in one turn; vrag searches first: tests/tasks/vrag.
ONE_TURN = sorted(set(ENVIRONMENTS) - {"vrag"})
FIELDS = {"score", "acc", "turns", "right_turns", "first_acc", "truncated", "faults", "other_rule", "pred"}


def played(
    *answers: str, task: str = "general_points", row: dict[str, Any] = ROW, **changes: Any
) -> tuple[list[Any], dict[str, Any]]:
    environment = make_environment(node(task, **changes))
    environment.reset(row)
    return [environment.step(answer, True) for answer in answers], environment.fields()


def small_rows(task: str) -> list[dict[str, Any]]:
    settings = task_settings(task)
    if task == "general_points":
        settings["rows"] = {"train": 20, "gp_id": 5, "gp_id_seen": 5, "gp_ood": 20, "gp_ood_target": 5}
        return hands.build_rows(hands.Settings.from_node(settings))
    if task == "navigation":
        settings["routes"] = {"train": 2, "nav_id": 1, "nav_ood": 1, "nav_city": 1}
        return positions.build_rows(positions.Settings.from_node(settings))
    settings["rows"] = dict.fromkeys(settings["rows"], 5)
    return matrix_rows(MatrixSettings.from_node(settings))


# --- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "mean"}, r"environment.score='mean' is unknown; choose one of outcome, sum, last"),
        ({"credit": "token"}, r"environment.credit='token' is unknown; choose one of trajectory, turn"),
        ({"gae": "trajectory"}, r"environment.gae='trajectory' is unknown; choose one of token, turn"),
        ({"name": "chess"}, r"environment.name='chess' is unknown; choose one of general_points, matrices, navigation, vrag"),
        ({"max_turns": 0}, r"environment.max_turns=0: give an integer of at least 1"),
        ({"max_turns": True}, r"environment.max_turns=True"),
        ({"max_tokens_per_turn": 8}, r"environment.min_turn_tokens=16 exceeds environment.max_tokens_per_turn=8.*lower it"),
        ({"limit_penalty": "x"}, r"environment.limit_penalty='x': give a number"),
        ({"limit_penalty": float("nan")}, r"environment.limit_penalty=nan: give a number"),
        ({"credit": "turn"}, r"environment.credit=turn .* environment.score=outcome is not that: set environment.score=sum"),
        ({"gae": "turn"}, r"environment.gae=turn needs the rewards of turns; set environment.credit=turn"),
        ({"upstream_compat": "yes"}, r"environment.upstream_compat='yes': give true or false"),
        ({"read_characters": 0}, r"environment.read_characters=0: give an integer of at least 1"),
        ({"rewards": {}}, r"environment.rewards=\{\}: give exactly native, upstream"),
        (
            {"rewards": {"native": {"correct_solution": 5}, "upstream": {}}},
            r"environment.rewards.native=.*give exactly correct_solution",
        ),
        ({"prompt_style": "native"}, r"environment.prompt_style is unknown; its own keys are rewards, upstream_compat"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_environment(node("general_points", **changes))


def test_a_setting_that_is_missing() -> None:
    for key, message in (("score", "environment.score is not set"), ("check_rhs", "environment.check_rhs is not set")):
        settings = node("general_points")
        del settings[key]
        with pytest.raises(ValueError, match=message):
            make_environment(settings)


@pytest.mark.parametrize(
    ("changes", "estimator", "message"),
    [
        ({}, "grpo", None),
        ({"score": "sum", "credit": "turn"}, "gae", None),
        ({"score": "sum", "credit": "turn"}, "grpo", r"environment.credit=turn needs a critic, and algorithm.adv_estimator=grpo"),
        (
            {"score": "sum", "credit": "turn", "gae": "turn"},
            "grpo",
            r"environment.gae=turn needs a critic.*use algorithm=ppo, or set",
        ),
    ],
)
def test_turn_credit_needs_a_critic(changes: dict[str, str], estimator: str, message: str | None) -> None:
    settings, _ = read_settings(node("general_points", **changes))
    assert isinstance(settings, EpisodeSettings)
    if message is None:
        settings.check_estimator(estimator)
    else:
        with pytest.raises(ValueError, match=message):
            settings.check_estimator(estimator)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([5], [1, 5, 5]), ([-1, 5], [1, 4, 5]), ([-2, -1, 5], [1, 2, 5]), ([-1, -1, -1, -1, -2], [0, -6, -2])],
)
def test_number_of_a_trajectory(rewards: list[float], expected: list[float]) -> None:
    assert [trajectory_score(rewards, rewards[-1] == 5, score) for score in SCORES] == expected


@pytest.mark.parametrize("task", sorted(ENVIRONMENTS))
def test_task_files_are_complete(task: str) -> None:
    config = compose_config([f"task={task}", "algorithm=grpo"])
    kwargs = OmegaConf.to_container(config.reward.custom_reward_function.reward_kwargs, resolve=True)
    assert kwargs == {"environment": node(task, max_turns=config.environment.max_turns)}
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "environment"
    assert config.environment.max_turns == {"navigation": 2, "vrag": 4}.get(task, 5), "as published"
    assert (
        config.fusion.success_key == "acc"
        and config.reward.custom_reward_function.path == "pkg://unify_posttrain.tasks.environment"
    )
    environment = make_environment(OmegaConf.to_container(config.environment, resolve=True))
    budget = environment.settings.max_tokens_per_turn
    assert budget <= config.data.max_response_length and task in PREPARERS
    assert compose_config(["algorithm=grpo"]).environment is None  # other tasks have one answer per prompt


# --- episodes ----------------------------------------------------------------------------------------------------------


def test_an_episode_that_ends_well() -> None:
    steps, fields = played(WRONG, RIGHT)
    assert [(step.reward, step.done, step.solved) for step in steps] == [(-1, False, False), (5, True, True)]
    assert steps[0].feedback[0].startswith("That is not right: ") and steps[1].feedback == ()
    assert {key: fields[key] for key in FIELDS} == {
        "score": 1, "acc": 1, "turns": 2, "right_turns": 1, "first_acc": 0, "truncated": 0, "faults": 0, "other_rule": 0,
        "pred": "(1+2+3)*4",
    }  # fmt: skip
    assert fields["outcome_correct_solution"] == fields["outcome_no_solution"] == 1 and fields["outcome_illegal_formula"] == 0


@pytest.mark.parametrize(("score", "number"), [("outcome", 0), ("sum", -6), ("last", -2)])
def test_turns_used_up(score: str, number: float) -> None:
    steps, fields = played(*[WRONG] * 5, score=score)
    assert [step.reward for step in steps] == [-1, -1, -1, -1, -2]  # limit_penalty on the last one
    assert [step.done for step in steps] == [False] * 4 + [True] and not steps[-1].solved
    assert (fields["score"], fields["acc"], fields["turns"]) == (number, 0, 5)


def test_a_cut_answer_uses_up_no_turns() -> None:
    environment = make_environment(node("general_points", max_turns=1))
    environment.reset(ROW)
    step = environment.step(WRONG, False)
    assert (step.reward, step.done, environment.fields()["truncated"]) == (-1, False, 1)
    assert environment.step is not None and make_environment(node("general_points")).fields()["turns"] == 0


def test_the_published_protocol_has_a_turn_that_nobody_reads() -> None:
    steps, fields = played(WRONG, WRONG, RIGHT.replace("4=", "5="), RIGHT, max_turns=2, upstream_compat=True, score="sum")
    assert [(step.reward, step.done) for step in steps[:3]] == [(-1, False), (-1, False), (-1, True)]
    assert fields["turns"] == 2
    environment = make_environment(node("general_points", max_turns=2, upstream_compat=True))
    assert environment.generations == 3 and make_environment(node("general_points", max_turns=2)).generations == 2


def test_a_judge_that_fails_costs_its_turn(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    environment = make_environment(node("general_points"))
    environment.reset(ROW)
    monkeypatch.setattr(type(environment), "judge", lambda self, text: 1 / 0)
    step = environment.step(RIGHT, True)
    assert (step.reward, step.done, step.solved, environment.fields()["faults"]) == (-5, True, False, 1)
    assert "ZeroDivisionError" in caplog.text
    environment.reset(ROW)
    assert environment.fields()["faults"] == 0


@pytest.mark.parametrize("task", ONE_TURN)
def test_fields_have_the_same_keys_and_the_wrapper_can_say_them(task: str) -> None:
    rows, contract = small_rows(task), Contract("here", 1000)
    keys = set()
    for row in rows:
        for text in (row["target"][-1]["content"], "", "\x00\ud800" * 50, '{"formula": "\ud800"}'):
            found = compute_score(row["data_source"], text, row["reward_model"]["ground_truth"], None, environment=node(task))
            keys.add(tuple(found))
            contract.read(found)
            json.dumps(found).encode("utf-8")
            str(found["pred"]).encode("utf-8")
    assert len(keys) == 1 and set(keys.pop()) >= FIELDS
    assert not (set(found) - {"score", "acc"}) & RESERVED


@pytest.mark.parametrize("task", ONE_TURN)
def test_demonstrations_are_right_at_once(task: str) -> None:
    for row in small_rows(task):
        found = compute_score("", row["target"][-1]["content"], row["reward_model"]["ground_truth"], environment=node(task))
        assert (found["acc"], found["score"], found["first_acc"]) == (1, 1, 1), row
        assert "".join(row["hint"]) == row["target"][-1]["content"]


def test_one_turn_of_an_episode_is_the_reward_function() -> None:
    for answer in (RIGHT, WRONG, "", '{"formula": "7"}'):
        for score in SCORES:
            _, fields = played(answer, score=score, max_turns=1)
            settings = node("general_points", score=score, max_turns=1)
            assert compute_score("gp_id", answer, ROW["reward_model"]["ground_truth"], environment=settings) == fields


def test_threads_do_not_disturb_each_other() -> None:
    rows = [(hand_row(cards), text) for cards, text in (("A 2 3 4", RIGHT), ("6 6 6 6", '{"formula": "6+6+6+6"}'))]
    wrong: list[Any] = []

    def score(number: int) -> None:
        row, text = rows[number % 2]
        for _ in range(300):
            found = compute_score("", text, row["reward_model"]["ground_truth"], environment=node_once)
            if found["acc"] != 1 or found["turns"] != 1:
                wrong.append(found)

    node_once = node("general_points")
    threads = [threading.Thread(target=score, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("task", ONE_TURN)
def test_a_player_that_answers_anything(task: str) -> None:
    """No exception, and no reward that is not in the table; `tests/benchmarks/environments.py` plays 100,000 turns."""
    rows, player = small_rows(task), RandomPlayer(0)
    environment, rewards, ended = make_environment(node(task)), possible_rewards(task), 0
    for number in range(300):
        steps = list(player.play(environment, rows[number % len(rows)], 9))
        fields = environment.fields()
        assert {step.reward for step in steps} <= rewards
        assert fields["faults"] == 0 and fields["turns"] == len(steps) <= environment.max_turns
        assert all(step.done or len(step.feedback[0]) > 0 for step in steps)
        ended += steps[-1].solved
    assert 30 < ended < 290


# --- rows that are none ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "error", "message"),
    [
        (None, TypeError, r"ground_truth of data_source='gp_id' must be text, got NoneType; make the data with"),
        ("24", ValueError, r"must be a JSON object with the keys cards, rule, target, style"),
        ("{", ValueError, r"is no JSON"),
        ("[" * 100_000, ValueError, r"is no JSON"),
        ({"cards": ["A"]}, ValueError, r"with the keys cards, rule, target, style"),
        ({"cards": ["A"] * 4, "rule": "ten", "target": 24, "style": "native"}, ValueError,
         r"cards A, A, A, A under rule=ten never reach target=24; leave the row out"),
        ({"cards": ["Z"] * 4, "rule": "ten", "target": 24, "style": "native"}, ValueError, r"give a list of A, 2"),
    ],
)  # fmt: skip
def test_a_bad_ground_truth_is_a_defect_of_the_data(truth: Any, error: type[Exception], message: str) -> None:
    text = truth if truth is None or isinstance(truth, str) else json.dumps(truth)
    with pytest.raises(error, match=message) as raised:
        compute_score("gp_id", RIGHT, text, environment=node("general_points"))
    assert len(str(raised.value)) < 700


def test_the_start_names_the_row_and_the_setting() -> None:
    function = {"path": "pkg://unify_posttrain.tasks.environment", "name": "compute_score"}
    good, bad = ROW["reward_model"]["ground_truth"], hand_row("A A A A")["reward_model"]["ground_truth"]
    kwargs = {"environment": node("general_points")}
    check_own_truths({**function, "reward_kwargs": kwargs}, [("test.parquet, row 0", good)])
    with pytest.raises(ValueError, match=r"^test.parquet, row 1: cards A, A, A, A under rule=ten never reach"):
        check_own_truths({**function, "reward_kwargs": kwargs}, [("test.parquet, row 0", good), ("test.parquet, row 1", bad)])
    with pytest.raises(ValueError, match=r"^environment.score='x' is unknown"):
        check_own_truths({**function, "reward_kwargs": {"environment": node("general_points", score="x")}}, [])
    with pytest.raises(
        ValueError, match=r"^reward.custom_reward_function.reward_kwargs.environment is not set.*task=general_points"
    ):
        check_own_truths(function, [])


def test_an_empty_verdict_is_no_outcome() -> None:
    assert Verdict("", -1).outcome not in make_environment(node("matrices")).OUTCOMES
    assert row_of({"a": 1})["reward_model"]["ground_truth"] == '{"a": 1}'
