"""Episodes: rounds over an engine, tokens and seeds of training, what is kept of turns, and what results say of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.evaluation.conduct import JSON, MARKDOWN, conduct
from unify_posttrain.evaluation.episode_results import episode_entry, loss_entry
from unify_posttrain.evaluation.episodes import EpisodePlayer
from unify_posttrain.evaluation.models import Model
from unify_posttrain.evaluation.requests import Output, Request
from unify_posttrain.evaluation.settings import Evaluation
from unify_posttrain.evaluation.store import Sample, SampleStore
from unify_posttrain.experience.transcript import Transcript, TurnFrame, turn_seed
from unify_posttrain.measures.statistics import Bootstrap
from unify_posttrain.tasks import environment as environments
from unify_posttrain.tasks.environment import make_environment
from unify_posttrain.tasks.general_points.rows import write_splits
from unify_posttrain.tasks.tokenizer import build_tokenizer
from unify_posttrain.tasks.turns import Step

from ..tasks.environments import hand_row, node, task_settings

HOW = Bootstrap(confidence=0.95, resamples=50, seed=0)
TOKENIZER = build_tokenizer(512)
TEMPLATE = ChatTemplate(TOKENIZER, key="custom_chat_template")
RIGHT, WRONG, OTHER = "{c:K A 3 6;n:13 1 3 6;f:(13-1)*6/3=24}", "{f:13+1+3+6=23}", "{f:10*3-6*1=24}"


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def problem(row: int, cards: str = "K A 3 6", rule: str = "rank", **extra: Any) -> Problem:
    made = hand_row(cards, rule, style="compact")
    return Problem(row, "gp_ood", [{"role": "user", "content": f"hand {row}"}], made["reward_model"]["ground_truth"], extra)


def request(row: int, number: int = 0, prompt: Sequence[int] = (1, 2, 3)) -> Request:
    return Request(row, number, tuple(prompt), 1.0, 1.0, -1, 99, seed=12345 + row)


class Answers:
    """An engine that says what a script has for (row, turn), and remembers its rounds. `…` at an end: cut, without an end token."""

    def __init__(self, script: Mapping[int, Sequence[str]]) -> None:
        self.script, self.rounds = script, list[list[Request]]()
        self.turns: dict[int, int] = {}

    def __call__(self, requests: Sequence[Request]) -> list[Output]:
        self.rounds.append(list(requests))
        outputs = []
        for each in requests:
            text = self.script[each.row][self.turns.setdefault(each.row, 0)]
            self.turns[each.row] += 1
            cut = text.endswith("…")
            ids = encode(text.removesuffix("…")) + ([] if cut else [TOKENIZER.eos_token_id])
            outputs.append(Output(ids[: each.max_tokens], cut or len(ids) > each.max_tokens))
        return outputs


def player(length: int = 1024, context: int = 4096, **changes: Any) -> EpisodePlayer:
    return EpisodePlayer(node("general_points", **changes), TOKENIZER, TEMPLATE, length, context)


def test_a_round_is_one_batch_of_all_open_episodes() -> None:
    script = {0: [WRONG, OTHER, RIGHT], 1: [RIGHT], 2: [WRONG] * 5}
    engine = Answers(script)
    samples = player().play([request(row) for row in script], [problem(row) for row in script], engine)
    assert [sorted(each.row for each in batch) for batch in engine.rounds] == [[0, 1, 2], [0, 2], [0, 2], [2], [2]]
    assert [(sample.row, sample.correct, sample.stop, len(sample.turns or [])) for sample in samples] == [
        (0, 1, "solved", 3), (1, 1, "solved", 1), (2, 0, "turns", 5),
    ]  # fmt: skip
    assert [turn["reward"] for turn in samples[0].turns or []] == [-1.0, -4.0, 5.0]
    assert [turn["reward"] for turn in samples[2].turns or []] == [-1.0, -1.0, -1.0, -1.0, -2.0]
    fields = samples[0].fields or {}
    assert (fields["first_acc"], fields["other_rule"], fields["turns"]) == (0.0, pytest.approx(1 / 3), 3.0)
    said = [turn["feedback"] for turn in samples[0].turns or []]
    assert all(each.startswith("no:") for each in said[:2]) and said[2] == ""
    assert samples[0].answer == "(13-1)*6/3" and not samples[0].truncated


def test_tokens_seeds_and_room_are_those_of_a_transcript_of_training() -> None:
    """The loop of experience/transcript.py, written out for one episode."""
    script = [WRONG, OTHER, RIGHT]
    engine = Answers({0: script})
    played = player(length=200, max_tokens_per_turn=64)
    (sample,) = played.play([request(0)], [problem(0)], engine)
    game = make_environment(node("general_points", max_tokens_per_turn=64))
    game.reset(hand_row("K A 3 6", "rank", style="compact"))
    frame = TurnFrame.from_template(TEMPLATE, encode, TOKENIZER.eos_token)
    transcript = Transcript(3, played.budget)
    for turn, text in enumerate(script):
        (asked,) = engine.rounds[turn]
        assert asked.prompt_ids == (1, 2, 3, *transcript.ids)
        assert (asked.max_tokens, asked.seed) == (transcript.room(), turn_seed(12345, turn))
        transcript.answer([*encode(text), TOKENIZER.eos_token_id])
        step = game.step(text, True)
        transcript.judged(step.reward, True, step.done, step.solved)
        if transcript.stop is None:
            transcript.feedback(frame.around(encode(str(step.feedback[0]))))
    assert (sample.tokens, sample.stop) == (sum(transcript.mask), transcript.stop) == (sum(transcript.mask), "solved")
    assert sample.response == TOKENIZER.decode(transcript.ids, skip_special_tokens=True)


def test_batches_do_not_matter() -> None:
    script = {0: [WRONG, RIGHT], 1: [OTHER, WRONG, RIGHT], 2: [RIGHT]}
    together = player().play([request(row) for row in script], [problem(row) for row in script], Answers(script))
    alone = [player().play([request(row)], [problem(row)], Answers(script))[0] for row in script]
    assert together == alone


def test_a_cut_answer_is_judged_and_not_answered() -> None:
    (cut, solved) = player().play([request(0), request(1)], [problem(0), problem(1)], Answers({0: [f"{WRONG}…"], 1: [f"{RIGHT}…"]}))
    assert (cut.stop, cut.truncated, len(cut.turns or [])) == ("length", True, 1) and (cut.turns or [{}])[0]["feedback"] == ""
    assert (solved.stop, solved.correct, solved.truncated) == ("solved", 1, False)


def test_no_room_for_another_turn_ends_an_episode() -> None:
    (sample,) = player(length=40, max_tokens_per_turn=30).play([request(0)], [problem(0)], Answers({0: [WRONG, RIGHT]}))
    assert (sample.stop, sample.truncated, len(sample.turns or [])) == ("length", True, 1)


def test_budgets_are_checked_in_the_words_of_the_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"benchmark gp: .*prompt of 50 tokens .*\(max_response_length=40, max_context=60\)"):
        player(length=40, context=60).check({0: [1] * 50}, "gp")
    player(length=100).check({0: [1] * 50}, "gp")
    assert "environment.max_turns=5" in caplog.text and "data." not in caplog.text


def test_one_turn_asks_nothing_of_the_template() -> None:
    class Silent:
        name = "none"

        def text(self, *_: Any) -> str:
            raise AssertionError("asked")

    EpisodePlayer(node("general_points", max_turns=1), TOKENIZER, Silent(), 99, 99)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        EpisodePlayer(node("general_points"), TOKENIZER, Silent(), 99, 99)  # type: ignore[arg-type]


class Slow:
    """An environment that answers asynchronously, with its own idea of turns."""

    def __init__(self, *_: Any) -> None:
        self.said: list[str] = []

    def reset(self, row: Mapping[str, Any]) -> None:
        self.row = row

    async def step(self, text: str, complete: bool) -> Step:
        self.said.append(text)
        if text == "boom":
            raise RuntimeError("no connection")
        done = len(self.said) == 2
        return Step(float(done), done, () if done else ("more", "!"), done)

    def fields(self) -> dict[str, float | str]:
        return {"score": 1.0, "acc": 1.0, "turns": 2.0, "pred": self.said[-1]}


def test_environments_may_answer_asynchronously(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environments.ENVIRONMENTS, "slow", f"{__name__}:Slow")
    keys = ("max_turns", "max_tokens_per_turn", "min_turn_tokens", "score", "credit", "gae", "limit_penalty")
    shared = {key: node("matrices")[key] for key in keys}
    played = EpisodePlayer({"name": "slow", **shared}, TOKENIZER, TEMPLATE, 512, 512)
    script = {0: ["a", "b"], 1: ["c", "d"], 2: ["boom"]}
    first, second, third = played.play([request(row) for row in script], [problem(row) for row in script], Answers(script))
    assert (third.correct, third.score, third.stop) == (0, 0.0, "ended"), "a fault costs the episode, not the evaluation"
    assert (first.answer, second.answer) == ("b", "d") and [turn["feedback"] for turn in first.turns or []] == ["more!", ""]


# On disk and in results


def sample(row: int, right: int, turns: int, outcomes: Mapping[str, int] | None = None, number: int = 0, **fields: float) -> Sample:
    counts = {f"outcome_{name}": float(count) for name, count in (outcomes or {}).items()}
    found = {"first_acc": float(right > 0 and turns == 1), "turns": float(turns), "right_turns": float(right), **counts, **fields}
    solved, stop = int(right > 0), "solved" if right else "turns"
    return Sample(row, number, "s", 1, "r", 5, False, float(solved), solved, "", 1, [{"text": "x"}], "q", stop, found)


def test_samples_of_both_kinds_come_back_as_they_were(tmp_path: Path) -> None:
    plain = Sample(1, 0, "s", 1, "r", 5, False, 1.0, 1, "", 1)
    episode = replace(sample(0, 1, 2), turns=[{"text": "\ud800é", "feedback": "no", "reward": -1.0, "solved": False, "tokens": 3}])
    SampleStore(tmp_path, {}).append([plain, episode])
    assert SampleStore(tmp_path, {}).ordered() == [episode, plain]
    first, second = (json.loads(line) for line in (tmp_path / "samples.jsonl").read_bytes().splitlines())
    assert "turns" not in first and second["stop"] == "solved"


def test_shares_are_of_turns_and_splits_of_problems() -> None:
    samples = [
        sample(0, 1, 1, {"right": 1, "illegal": 0}, other_rule=0.0),
        sample(1, 1, 3, {"right": 1, "illegal": 2}, other_rule=2 / 3),
        sample(2, 0, 4, {"right": 0, "illegal": 4}, other_rule=0.0),
    ]
    problems = [problem(0, seen=True), problem(1, seen=False), problem(2, seen=False)]
    found = episode_entry(samples, problems, ("seen",), HOW)
    assert (found["first_acc"], found["turns"], found["step_accuracy"]) == (pytest.approx(1 / 3), 8 / 3, 2 / 8)
    assert found["other_rule"] == pytest.approx(2 / 8) and found["outcomes"] == {"right": 2 / 8, "illegal": 6 / 8}
    assert found["stops"] == {"solved": pytest.approx(2 / 3), "turns": pytest.approx(1 / 3)}
    assert {value: (part["problems"], part["accuracy"]["mean"]) for value, part in found["splits"]["seen"].items()} == {
        "false": (2, 0.5), "true": (1, 1.0),
    }  # fmt: skip
    assert "routes" not in found


def test_a_route_is_solved_if_every_position_is() -> None:
    """The specification's four positions with right/attempts 1/1, 1/2, 0/2, 1/1, and a route that is solved."""
    counts = [(1, 1), (1, 2), (0, 2), (1, 1)]
    positions = [*((3, place, *pair) for place, pair in enumerate(counts)), (7, 0, 1, 1)]
    problems = [problem(row, route=route, position=place) for row, (route, place, *_) in enumerate(positions)]
    found = episode_entry([sample(row, *each[2:]) for row, each in enumerate(positions)], problems, (), HOW)
    assert found["step_accuracy"] == pytest.approx(4 / 7)
    assert found["routes"] == {"routes": 2, "solved": 0.5, "reached_accuracy": pytest.approx((2 + 1) / (5 + 1))}


def test_losses_are_means_over_answers_and_over_tokens() -> None:
    assert loss_entry({0: (2.0, 4), 1: (1.0, 1), 9: (50.0, 1)}, [0, 1, 5]) == {"answers": 2, "per_answer": 1.5, "per_token": 0.6}


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data with ten hands of `gp_id` and ten of `gp_ood`, three cards, compact prompts."""
    folder = tmp_path_factory.mktemp("data")
    rows = "{train: 20, gp_id: 10, gp_id_seen: 0, gp_ood: 10, gp_ood_target: 0}"
    settings = task_settings(
        "general_points", "prepare.task.cards=3", "prepare.task.held_out=0.2", "prepare.task.prompt_style=compact",
        f"prepare.task.rows={rows}",
    )  # fmt: skip
    write_splits(folder / "general_points", settings)
    return folder


@pytest.fixture()
def episodes(settings: Callable[..., Evaluation], hands: Path) -> Callable[..., Evaluation]:
    """episodes("…") -> an evaluation of the tiny model on the hands, five turns."""

    def build(*overrides: str) -> Evaluation:
        base = {"benchmarks": "[gp_id,gp_ood]", "define.folder": str(hands), "n": "1", "temperature": "0", "chunk_size": "6",
                "environment": "{max_turns: 3}", "max_response_length": "100"}  # fmt: skip
        given = {override.partition("=")[0] for override in overrides}
        return settings(*(f"{key}={value}" for key, value in base.items() if key not in given), *overrides)

    return build


@pytest.mark.slow
def test_a_sweep_of_checkpoints_that_was_killed_equals_one_that_was_not(
    episodes: Callable[..., Evaluation], scripted: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    models = tuple(Model(f"step_{step}", str(tiny_model), step) for step in (0, 5))

    def answer(asked: Request) -> str:
        return f"{{f:{asked.seed % 10}+1=24}}"

    whole = replace(episodes(f"output={tmp_path / 'whole'}", "likelihood=true"), models=models)
    broken = replace(episodes(f"output={tmp_path / 'broken'}", "likelihood=true"), models=models)
    scores = {"log_probs": lambda pairs: [[-0.5] * len(target) for _, target in pairs]}

    def start(chunks: int | None = None) -> Any:
        engine = scripted(answer, chunks)
        engine.__dict__.update(scores)
        return engine

    results = conduct(whole, lambda *_: start())
    with pytest.raises(KeyboardInterrupt):
        conduct(broken, lambda *_: start(5))  # in a round of the second chunk
    conduct(broken, lambda *_: start())
    for name in (JSON, MARKDOWN):
        assert (broken.output / name).read_bytes() == (whole.output / name).read_bytes()
    entries = {entry["source"]: entry for entry in results["models"][1]["sources"]}
    assert set(entries) == {"gp_id", "gp_ood"} and {entry["problems"] for entry in entries.values()} == {10}
    assert entries["gp_ood"]["episodes"]["turns"] == 3.0 and "seen_labels" in entries["gp_ood"]["episodes"]["splits"]
    assert entries["gp_id"]["loss"]["per_token"] == 0.5
    report = (whole.output / MARKDOWN).read_text()
    for expected in ("environment general_points, up to 3 turns", "## Episodes", "## Loss of the worked answers"):
        assert expected in report
    with pytest.raises(ValueError, match=r"environment\.max_turns=3, which is now 2"):
        conduct(replace(episodes(f"output={whole.output}", "environment={max_turns: 2}"), models=models), lambda *_: start())


def test_the_loss_is_the_cross_entropy_of_the_answer(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from unify_posttrain.evaluation.engines import EngineSettings, start_engine
    from unify_posttrain.evaluation.likelihood import FILE, measure

    target = [{"role": "assistant", "content": "1+2"}, {"role": "user", "content": "no"}, {"role": "assistant", "content": "3"}]
    problems = [replace(problem(0), target=target[:1]), replace(problem(4), target=target)]
    prompts = {0: [10, 11, 12], 4: [10, 11]}
    engine = start_engine(tiny_model, EngineSettings("hf", "float32", 64, 4, {}, {}))
    calls: list[int] = []
    found = measure(tmp_path, problems, prompts, TOKENIZER, TEMPLATE, lambda: calls.append(1) or engine)  # type: ignore[func-returns-value]
    frame = TurnFrame.from_template(TEMPLATE, encode, TOKENIZER.eos_token)
    eos = TOKENIZER.eos_token_id
    first, second = [*encode("1+2"), eos], [*encode("3"), eos]
    feedback = frame.around(encode("no"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for row, ids, counted in ((0, first, [1] * 4), (4, [*first, *feedback, *second], [1] * 4 + [0] * len(feedback) + [1] * 2)):
        labels = torch.tensor(
            [[-100] * len(prompts[row]) + [token if kept else -100 for token, kept in zip(ids, counted, strict=True)]]
        )
        with torch.inference_mode():
            mean = model(input_ids=torch.tensor([[*prompts[row], *ids]]), labels=labels).loss.item()
        assert found[row] == (pytest.approx(mean * sum(counted), rel=1e-5), sum(counted))
    assert len(calls) == 1
    assert measure(tmp_path, problems, prompts, TOKENIZER, TEMPLATE, lambda: pytest.fail("computed again")) == found
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        measure(tmp_path, problems, prompts, TOKENIZER, TEMPLATE, lambda: engine)
