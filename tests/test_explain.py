"""The printed algorithm: it says what the objects say, and of every setting its value and where that was set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import ALGORITHMS, Algorithm
from unify_posttrain.config import conf_dir
from unify_posttrain.explain import COLUMNS, OF_DEMONSTRATIONS, OF_EVERY_RUN, SETTINGS, explain, main
from unify_posttrain.phase_files import file_chain
from unify_posttrain.provenance import COMMAND_LINE, VERL

NAMES = sorted(ALGORITHMS)
# Spellings of other keys, and what is there before an algorithm is.
NOT_SHOWN = {"fusion.algorithm", "trainer.unify_strategy", "trainer.switch_gate", "trainer.switch_gate_off"}


@pytest.fixture(scope="module", autouse=True)
def each_configuration_is_composed_once(composed: Callable[..., DictConfig]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unify_posttrain.explain.compose_config", lambda overrides: composed(*overrides))
        yield


@cache
def explained(*overrides: str) -> dict[str, Any]:
    return explain(overrides)


def sources(*overrides: str) -> dict[str, str]:
    """key -> where it was set."""
    return {each["key"]: each["from"] for each in explained(*overrides)["settings"]}


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each printed table, as the texts of their cells; a cell may go on in the line below."""
    found: list[list[list[str]]] = []
    for line in text.splitlines():
        if line.startswith("┏"):
            found.append([])
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if cells[0]:
                found[-1].append(cells)
            else:
                found[-1][-1] = [" ".join(filter(None, pair)) for pair in zip(found[-1][-1], cells, strict=True)]
    return found


def cell(value: Any) -> str:
    return "null" if value is None else str(value)


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_printed(name: str, capsys: pytest.CaptureFixture[str], algorithm: Callable[..., Algorithm]) -> None:
    """Names, rows and formulas as the algorithm's own objects describe themselves, brackets included."""
    main([f"algorithm={name}"])
    text = capsys.readouterr().out
    built, data = algorithm(f"algorithm={name}"), explained(f"algorithm={name}")
    head = " ".join(text.partition("┏")[0].split())  # long lines are wrapped
    assert head.startswith(name)
    for part in (phase.algorithm for phase in built.phases):
        assert part.experience.describe() in head and part.advantage.describe() in head
    assert head.endswith(f"rows {data['rows']} advantage {data['advantage']}")
    terms, settings = tables(text)
    expected = [[f"{term[c]:g}" if c == "coefficient" else cell(term[c]) for c in COLUMNS] for term in data["terms"]]
    assert terms == expected
    several = len(built.phases) > 1
    names = [f"{p.algorithm.name}: {t.name}" if several else t.name for p in built.phases for t in p.algorithm.terms]
    assert [row[0] for row in terms if "replay" not in row[0]] == names
    assert sum("replay: " in row[0] for row in terms) == len(built.replay_terms)
    assert settings == [[cell(setting[column]) for column in SETTINGS] for setting in data["settings"]]


@pytest.mark.parametrize("name", NAMES)
def test_as_json_it_is_the_composed_configuration(
    name: str, capsys: pytest.CaptureFixture[str], composed: Callable[..., DictConfig]
) -> None:
    main([f"algorithm={name}", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(json.dumps(explained(f"algorithm={name}")))
    config = composed(f"algorithm={name}")
    for setting in data["settings"]:
        value = OmegaConf.select(config, setting["key"])
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if setting["key"] == "fusion.phases":  # what was written, not what its names mean
            shown = [{key: each[key] for key in ("algorithm", "steps", "stall", "lr") if key in each} for each in value]
            assert setting["value"] == shown
        else:
            assert setting["value"] == value, setting["key"]
    keys = [setting["key"] for setting in data["settings"]]
    assert len(keys) == len(set(keys)) and set(OF_EVERY_RUN) <= set(keys)
    assert (set(OF_DEMONSTRATIONS) <= set(keys)) == (data["needs_target"] and "fusion.phases" not in keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_named_sets_the_value(name: str, composed: Callable[..., DictConfig]) -> None:
    config = composed(f"algorithm={name}")
    for key, source in sources(f"algorithm={name}").items():
        if source == VERL:
            continue
        assert source.startswith("conf/") and source != COMMAND_LINE, key
        file, _, copied = source.removesuffix(")").partition(" (")  # of a value that is another key's
        written = OmegaConf.to_container(OmegaConf.load(conf_dir() / file.removeprefix("conf/")))
        for part in (copied or key).split("."):
            assert part in written, f"{source} does not set {key}"
            written = written[part]
        if "${" not in str(written) and key != "fusion.phases":
            assert written == OmegaConf.select(config, key), key


@pytest.mark.parametrize("name", NAMES)
def test_all_of_an_algorithms_own_settings_are_shown(name: str, composed: Callable[..., DictConfig]) -> None:
    """No key of a method's own nodes is without effect, except where another setting switches it off."""
    switched_off = {  # key -> a command line under which it is read
        "fusion.online_sft.clip_weight_value": "fusion.online_sft.form=pseudo",
        "fusion.online_sft.clip_logprob_min": "fusion.online_sft.form=pseudo",
        "fusion.online_sft.legacy": None,  # a permission, which checks read
        "fusion.luffy.on_adv_weight": None,  # LUFFY's factors, which SRFT inherits and refuses
        "fusion.luffy.prefix_adv_weight": None,
        "fusion.online_sft.episodes": None,  # ... from which conf/ computes trainer.total_training_steps
    }
    config, shown = composed(f"algorithm={name}"), set(sources(f"algorithm={name}"))
    for node in ALGORITHMS[name].nodes:
        value = OmegaConf.select(config, f"fusion.{node}")
        keys = [f"fusion.{node}.{key}" for key in value] if isinstance(value, DictConfig) else [f"fusion.{node}"]
        for key in set(keys) - shown:
            assert key in switched_off, key
            if switched_off[key]:
                assert key in sources(f"algorithm={name}", switched_off[key]), key


def leaves(node: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{key}.")
        elif key != "defaults":
            yield f"{above}{key}"


@pytest.mark.parametrize("name", NAMES)
def test_what_an_algorithms_file_sets_is_shown(name: str) -> None:
    """Schedules, dynamic sampling, penalties, a critic's and an estimator's numbers are the method's as much as its terms are.

    Left out are keys of `fusion` and of the actor's loss that a file takes over from another one or sets without reading them:
    what of those is read, `settings_read` watches.
    """
    task = ["task=navigation"] if name == "ppo_heals" else []
    shown = set(sources(f"algorithm={name}", *task))
    for file in file_chain(conf_dir() / "algorithm", name):
        keys = {key.replace("episode.", "environment.") for key in leaves(OmegaConf.to_container(OmegaConf.load(file)))}
        watched = {key for key in keys if key.startswith("fusion.") or key == "actor_rollout_ref.actor.entropy_coeff"}
        assert keys - watched - NOT_SHOWN - shown == set(), file.name


def test_turns_are_shown() -> None:
    """Credit of turns is a method's, whose environment is the task's."""
    heals = explained("algorithm=ppo_heals", "task=navigation")
    assert heals["advantage"] == "GAE of the critic's values, over turns: one number for all tokens of a turn"
    assert {term["advantage"] for term in heals["terms"]} == {heals["advantage"]}
    found = sources("algorithm=ppo_heals", "task=navigation")
    assert found["environment.credit"] == "conf/algorithm/ppo_heals.yaml (episode.credit)"
    assert found["critic.ppo_epochs"] == "conf/algorithm/ppo_heals.yaml (actor_rollout_ref.actor.ppo_epochs)"
    assert found["algorithm.gamma"] == "conf/algorithm/ppo_heals.yaml"
    plain = explained("algorithm=grpo", "task=navigation")
    assert plain["advantage"] == explained("algorithm=grpo")["advantage"]
    assert sources("algorithm=grpo", "task=navigation")["environment.credit"] == "conf/task/navigation.yaml"
    by_turn = explained("algorithm=ppo", "task=navigation", "environment.score=sum", "environment.credit=turn")
    assert by_turn["advantage"] == "GAE of the critic's values, each turn's reward on its last token"


def test_where_a_setting_comes_from() -> None:
    gate = "fusion.hpt.switch_gate"
    assert sources("algorithm=hpt")[gate] == "conf/algorithm/hpt.yaml"
    assert sources("algorithm=hpt", "trainer.switch_gate=2")[gate] == "command line (trainer.switch_gate)"
    assert sources("algorithm=hpt", f"{gate}=2")[gate] == "command line"
    # a file that builds on another one
    prefix = sources("algorithm=prefix_rft")
    assert prefix["fusion.luffy.baseline"] == "conf/algorithm/luffy.yaml"
    assert prefix["fusion.prefix.strategy"] == "conf/algorithm/prefix_rft.yaml"
    assert prefix["fusion.seed"] == "conf/train.yaml"
    assert prefix["actor_rollout_ref.actor.ppo_epochs"] == "verl"
    # the model has the last word on the rate, and the command line on everything
    rate = "actor_rollout_ref.actor.optim.lr"
    assert sources("algorithm=sft")[rate] == "conf/model/tiny_qwen2.yaml"
    assert sources("algorithm=sft", "model=qwen2_5_math_7b")[rate] == "conf/algorithm/sft.yaml"
    assert sources("algorithm=sft", f"{rate}=1e-3")[rate] == "command line"
    width = sources("algorithm=uft", "data.max_response_length=128")
    assert width["data.max_response_length"] == "command line"
    assert width["fusion.uft.max_new_tokens"] == "command line (data.max_response_length)"


def test_a_command_line_is_what_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    main(["algorithm=hpt", "fusion.shaping.gamma=0.3", "fusion.hpt.strategy=soft", "--json"])
    data = json.loads(capsys.readouterr().out)
    off = next(term for term in data["terms"] if term["term"] == "off")
    assert off["pi_ref"].endswith("π/(π+0.3)") and off["weight"] == "off_weight"
    assert data["rows"] == "7 rollouts and a demonstration, weighted by the number of solved rollouts"
    values = {each["key"]: each["value"] for each in data["settings"]}
    assert (values["fusion.shaping.gamma"], values["fusion.hpt.strategy"]) == (0.3, "soft")


def test_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["algorithm=all", "fusion.seed=3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [each["algorithm"] for each in found] == sorted(ALGORITHMS)
    seeds = [setting for each in found for setting in each["settings"] if setting["key"] == "fusion.seed"]
    assert seeds and all((setting["value"], setting["from"]) == (3, "command line") for setting in seeds)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm=lufy"], r"error: algorithm=lufy is unknown; .* did you mean luffy\?"),
        (
            ["algorithm=luffy", "fusion.luffy.baseline=rollout"],
            r"error: fusion\.luffy\.baseline='rollout'; .* mean rollouts\?",
        ),
        (["algorithm=luffy", "fusion.hpt.switch_gate=1"], r"error: fusion\.hpt\.switch_gate does not exist"),
        (["algorithm=grpo", "fusion.luffy.baseline=group"], r"error: fusion\.luffy\.baseline does not exist"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as stopped:
        main(overrides)
    assert "\n" not in str(stopped.value.code)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "python -m unify_posttrain.explain algorithm=all --json" in capsys.readouterr().out
