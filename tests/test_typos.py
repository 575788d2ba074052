"""Mistakes on a command line: one line that names the key, the nearest ones and the remedy, the same for every command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
from hydra.errors import ConfigCompositionException

from unify_posttrain import config
from unify_posttrain.config import check_choices, compose_config, known_keys, run_command
from unify_posttrain.typos import ConfigurationError, check_additions, dotted_keys, nearest, with_hint

KEYS = [
    "trainer.switch_gate",
    "trainer.switch_gate_off",
    "fusion.hpt.switch_gate",
    "actor.optim.lr",
    "critic.optim.lr",
    "data.seed",
    "task",
]


def test_nested_keys_are_listed_with_their_nodes() -> None:
    assert list(dotted_keys({"a": {"b": 1, "c": {"d": [{"e": 1}]}}, "f": None})) == ["a", "a.b", "a.c", "a.c.d", "f"]


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("trainer.switch_gat", ["trainer.switch_gate"]),
        ("trainr.switch_gate", ["trainer.switch_gate"]),
        ("switch_gate", ["trainer.switch_gate", "fusion.hpt.switch_gate"]),  # all that is missing is where it stands
        ("optim.lr", ["actor.optim.lr", "critic.optim.lr"]),
        ("tsak", ["task"]),
        ("wholly.unlike", []),
    ],
)
def test_nearest_keys(key: str, found: list[str]) -> None:
    assert nearest(key, KEYS) == found


def test_not_more_are_named_than_asked_for() -> None:
    assert len(nearest("lr", [f"part_{number}.lr" for number in range(9)])) == 3
    assert nearest("lr", [f"part_{number}.lr" for number in range(9)], count=1) == ["part_0.lr"]


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("trainer.unify_strategy='swich' is unknown; choose one of switch, soft, no", "switch"),
        ("fusion.clip='ppoo'; choose one of none, ppo", "ppo"),
        ("fusion.agg: 'token-men' is unknown; choose one of token-mean, sum-norm", "token-mean"),
        ("error: benchmarks: 'amie24' is unknown; choose among aime24, aime25, or give a .parquet file", "aime24"),
        ("dtype=bfloat; choose one of auto, bfloat16, float16", "bfloat16"),
    ],
)
def test_the_nearest_value_is_named(message: str, hint: str) -> None:
    assert with_hint(message) == f"{message}; did you mean {hint}?"
    assert with_hint(with_hint(message)) == with_hint(message)


@pytest.mark.parametrize(
    "message", ["fusion.hpt.soft_type=9 is unknown; choose one of 0, 1, 2", "x=1 must be > 2", "choose one of a, b"]
)
def test_nothing_is_made_up(message: str) -> None:
    assert with_hint(message) == message


# Composing


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.switch_gat=0",
            "trainer.switch_gat does not exist; did you mean trainer.switch_gate? (+trainer.switch_gat=0 adds a new key",
        ),
        ("algoritm=hpt", "algoritm does not exist; did you mean algorithm?"),
        ("rollout.n=4", "did you mean actor_rollout_ref.rollout.n?"),
        ("fusion.hpt.soft_typ=1", "fusion.hpt.soft_typ does not exist; did you mean fusion.hpt.soft_type?"),
        ("~trainer.switch_gat", "~trainer.switch_gat: there is no trainer.switch_gat to delete; did you mean trainer.switch_gate?"),
        ("+trainer.run_dir=x", "trainer.run_dir exists already, + is for new keys; write it without +"),
        ("trainer.xyzzy=1", "trainer.xyzzy does not exist; --cfg job prints all that do"),
        ("algorithm=hpt,grpo", "algorithm=hpt,grpo gives several values: add -m"),
        ("trainer.switch_gate", "'trainer.switch_gate' has no value; write trainer.switch_gate=VALUE"),
        ("trainer.logger=[console", "cannot read 'trainer.logger=[console'"),
        ("hydra.job.chdir=maybe", "hydra.job.chdir=maybe cannot be set"),
        ("actor@actor_rollout_ref.actor=dp_actr", "actor=dp_actr is unknown; choose one of"),
        ("algorithm=htp", "did you mean hpt?"),
        ("algorithm=null", "algorithm=null is unknown; choose one of"),
    ],
)
def test_one_line_says_what_is_wrong_and_what_is_nearest(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        compose_config([override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_is_also_what_hydra_would_raise() -> None:
    with pytest.raises(ConfigCompositionException):
        compose_config(["trainer.switch_gat=0"])


def test_a_key_of_another_method_is_named_as_its_own() -> None:
    """It must not be offered as if it existed, nor be added as a key that nobody reads."""
    with pytest.raises(ConfigurationError, match=r"^trainer\.switch_gate does not exist here: only algorithm=hpt reads it$"):
        compose_config(["algorithm=grpo", "trainer.switch_gate=0"])
    with pytest.raises(ConfigurationError, match=r"did you mean fusion\.prefix_rft\.entropy_top \(algorithm=prefix_rft\)\?$"):
        compose_config(["algorithm=luffy", "fusion.prefix.entropy_top=0.2"])


def test_strict_nodes_offer_no_new_key() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose_config(["fusion.sedd=1"])
    assert "did you mean fusion.seed?" in str(caught.value) and "+" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "study", "export", "evaluate", "analyze"])
def test_every_command_knows_its_keys(name: str) -> None:
    sample = {
        "train": "trainer.switch_gate",
        "study": "common.trainer.test_freq",
        "export": "push_to_hub",
        "evaluate": "benchmarks",
        "analyze": "random_tolerance",
    }
    keys = known_keys(name)
    assert not keys[sample[name]]


DECLARED = ["fusion", "fusion.hpt", "fusion.hpt.soft_type", "fusion.lr_schedule", "fusion.phases"]


@pytest.mark.parametrize(
    "override",
    [
        "+trainer.anything=1",
        "++fusion.hpt.soft_type=1",
        "+fusion.lr_schedule.start=0.1",
        "+fusion.phases.0.lr=1",
        "fusion.hpt.soft_typ=1",
    ],
)
def test_additions_that_may_be_meant(override: str) -> None:
    check_additions([override], DECLARED)


@pytest.mark.parametrize("override", ["+fusion.hpt.soft_typ=1", "++fusion.soft_type=1", "+fusion.hpt.soft_typs={a: 1}"])
def test_additions_below_a_strict_node_are_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"takes no new keys; did you mean fusion\.hpt\.soft_type\?"):
        check_additions([override], DECLARED)


def test_choices_of_a_sweep_are_checked_one_by_one() -> None:
    check_choices(["algorithm=hpt,grpo", "algorithm=choice(luffy,srft)", "trainer.switch_gate=0,1"])
    with pytest.raises(ValueError, match=r"^algorithm=gpro is unknown; .* did you mean grpo\?"):
        check_choices(["algorithm=hpt,gpro"])


# Running


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(main: Callable[[], None], *arguments: str, name: str = "study") -> None:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        run_command(main, name)

    return run


def raises(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


HYDRA = ConfigCompositionException("Could not override 'seed'.\nTo append to your config use +seed=[0]")


def test_a_command_ends_with_one_line(command: Callable[..., None]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(raises(HYDRA), "seed=[0]")
    assert stopped.value.code == "error: seed does not exist; did you mean seeds? (+seed=[0] adds a new key on purpose)"
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_the_commands_own_errors_get_the_hint(command: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"did you mean ppo\?"):
        command(raises(SystemExit("error: fusion.clip='ppoo'; choose one of none, ppo")))
    with pytest.raises(SystemExit) as stopped:
        command(raises(SystemExit(75)))
    assert stopped.value.code == 75


def test_a_crash_is_not_taken_for_a_typo(command: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="a bug"):
        command(raises(ValueError("a bug")))


def test_who_wants_hydras_traceback_gets_it(command: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigCompositionException):
        command(raises(HYDRA), "seed=[0]")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_typos_are_found_before_anything_is_composed(command: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_compose", raises(AssertionError("composed")))
    for argument, line in {
        "algorithm=htp": "did you mean hpt?",
        "+fusion.hpt.soft_typ=1": "did you mean fusion.hpt.soft_type?",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            command(raises(AssertionError("run")), argument, name="train")
        assert str(stopped.value.code).startswith("error: ") and str(stopped.value.code).endswith(line)
