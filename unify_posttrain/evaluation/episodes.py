"""Episodes over any engine, in rounds of turns: all open episodes of a round are one batch.

Tokens, seeds, budget and environment are those of training (`unify_posttrain.experience.transcript`), so that an episode with the
same settings has the same tokens here and there.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.evaluation.requests import Output, Request
from unify_posttrain.evaluation.store import Sample
from unify_posttrain.experience.feedback import QWEN_VISION, feedback_ids, images_of
from unify_posttrain.experience.transcript import LENGTH, Transcript, TurnBudget, TurnFrame, turn_seed
from unify_posttrain.rollout.pictures import image_frame
from unify_posttrain.tasks.environment import Environment, image_limits, make_environment
from unify_posttrain.tasks.episodes import NODE, read_settings
from unify_posttrain.tasks.turns import Step

logger = logging.getLogger(__name__)

MARK = "<image>"
Generate = Callable[[Sequence[Request]], Sequence[Output]]


@dataclass
class _Episode:
    """One sample while it is played."""

    request: Request
    problem: Problem
    environment: Environment
    transcript: Transcript
    turns: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False

    def next_request(self) -> Request | None:
        """Of the next answer; None: the episode is over."""
        room = self.transcript.room()
        if not room:
            return None
        return replace(
            self.request,
            prompt_ids=(*self.request.prompt_ids, *self.transcript.ids),
            images=(*self.request.images, *(part.image for part in self.transcript.images)),
            max_tokens=room,
            seed=turn_seed(self.request.seed, self.transcript.turns),
        )


class EpisodePlayer:
    """Plays the samples of a benchmark with turns.

    Args:
        node: settings of its environment.
        tokenizer: of the model.
        template: of the model, with the options of the evaluation.
        response_length: tokens of a whole episode, `data.max_response_length` of training.
        max_context: tokens of prompt and episode together.
        engine: name of the engine that answers.

    Raises:
        ValueError: settings that the environment refuses, a template that episodes cannot be laid out with, or images for an
            engine or a model that takes none.
    """

    def __init__(
        self,
        node: Mapping[str, Any],
        tokenizer: Any,
        template: ChatTemplate,
        response_length: int,
        max_context: int,
        engine: str = "hf",
    ) -> None:
        self.node, self.tokenizer = node, tokenizer
        settings, _ = read_settings(node)
        self.budget = TurnBudget(
            settings.max_turns, settings.max_tokens_per_turn, settings.min_turn_tokens, response_length, max_context
        )
        several = getattr(make_environment(node), "generations", settings.max_turns) > 1
        limits = image_limits(node)
        if limits.images and engine != "hf":
            raise ValueError(
                f"{NODE}.name={settings.name} answers with images, and engine={engine} is asked by text alone; set engine=hf"
            )
        self.image_frame = image_frame(tokenizer) if limits.images else None
        self.feedback = (
            limits.tokens + len(QWEN_VISION) - 1 if limits.images else 0
        )  # tokens that one takes at most, as far as is known
        # One turn needs no frame, and so no template that has one.
        self.frame = TurnFrame.from_template(template, self._encode, str(tokenizer.eos_token)) if several else TurnFrame((), ())

    def check(self, prompts: Mapping[int, Sequence[int]], name: str) -> None:
        """Refuse a budget without room for a turn, and say where it has none for all of them.

        Args:
            prompts: ids by row.
            name: of the benchmark.

        Raises:
            ValueError: names the keys and the arithmetic.
        """
        try:
            warning = self.budget.check(max(map(len, prompts.values())), len(self.frame), self.feedback)
        except ValueError as error:
            raise ValueError(f"benchmark {name}: {_by_own_keys(str(error))}") from None
        if warning is not None:
            logger.warning("benchmark %s: %s", name, _by_own_keys(warning))

    def play(self, requests: Sequence[Request], problems: Sequence[Problem], generate: Generate) -> list[Sample]:
        """One sample per request, in their order.

        Args:
            requests: of the first answers.
            problems: of each request.
            generate: of an engine.
        """
        episodes = [self._begin(request, problem) for request, problem in zip(requests, problems, strict=True)]
        while pending := [(episode, asked) for episode in episodes if (asked := episode.next_request()) is not None]:
            pending.sort(key=lambda pair: (*pair[1].order, pair[1].row, pair[1].number))  # prompts of like lengths decode together
            outputs = generate([asked for _, asked in pending])
            self._answered([episode for episode, _ in pending], outputs)
        return [self._sample(episode) for episode in episodes]

    def _begin(self, request: Request, problem: Problem) -> _Episode:
        environment = make_environment(self.node)
        environment.reset({
            "data_source": problem.source,
            "prompt": problem.messages,
            "reward_model": {"ground_truth": problem.ground_truth},
            "extra_info": problem.extra_info,
        })  # fmt: skip
        # A row may have fewer turns than the settings, and a published protocol one generation more than it verifies.
        turns = getattr(environment, "generations", self.budget.max_turns)
        return _Episode(request, problem, environment, Transcript(len(request.prompt_ids), replace(self.budget, max_turns=turns)))

    def _answered(self, episodes: Sequence[_Episode], outputs: Sequence[Output]) -> None:
        texts = [self.tokenizer.decode(output.token_ids, skip_special_tokens=True) for output in outputs]
        steps = asyncio.run(_judged(episodes, texts, outputs))
        for episode, output, text, step in zip(episodes, outputs, texts, steps, strict=True):
            transcript = episode.transcript
            transcript.answer(output.token_ids)
            transcript.judged(step.reward, not output.truncated, step.done, step.solved)
            told = "".join(map(_text, step.feedback))
            if transcript.stop is None:
                ids = feedback_ids(step.feedback, self._encode, self.image_frame)
                transcript.feedback(self.frame.around(ids), images_of(step.feedback))
            said = told if transcript.stop is None else ""  # what no answer follows was not said
            turn = {"text": text, "feedback": said, "reward": step.reward, "solved": step.solved, "tokens": len(output.token_ids)}
            shown = [dict(part.origin) for part in images_of(step.feedback)] if said else []
            verdict = {"verdict": step.outcome} if step.outcome else {}
            episode.turns.append({**turn, **verdict, **({"images": shown} if shown else {})})

    def _sample(self, episode: _Episode) -> Sample:
        transcript, found = episode.transcript, episode.environment.fields()
        return Sample(
            row=episode.request.row,
            number=episode.request.number,
            source=episode.problem.source,
            seed=episode.request.seed,
            response=self.tokenizer.decode(transcript.ids, skip_special_tokens=True),
            tokens=sum(transcript.mask),
            truncated=transcript.stop == LENGTH,
            score=0.0 if episode.failed else float(found["score"]),
            correct=int(float(found["acc"]) >= 1 and not episode.failed),
            answer=str(found.get("pred", "")),
            gold_ok=1,
            turns=episode.turns,
            prompt=str(episode.problem.messages[-1]["content"]),
            stop=transcript.stop,
            fields={key: float(value) for key, value in found.items() if not isinstance(value, str)},
        )

    def _encode(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]


async def _judged(episodes: Sequence[_Episode], texts: Sequence[str], outputs: Sequence[Output]) -> list[Step]:
    async def judge(episode: _Episode, text: str, complete: bool) -> Step:
        try:
            step = episode.environment.step(text, complete)
            return await step if inspect.isawaitable(step) else step
        except Exception:  # as in training: a fault costs the episode, not the evaluation
            logger.exception("an environment could not judge an answer; the episode counts as wrong")
            episode.failed = True
            return Step(0.0, done=True)

    calls = zip(episodes, texts, outputs, strict=True)
    return await asyncio.gather(*(judge(episode, text, not output.truncated) for episode, text, output in calls))


def _text(part: Any) -> str:
    """What samples say of a part: a text is itself, an image a mark, as in targets; `images` of the turn says where it is from."""
    return part if isinstance(part, str) else MARK


def _by_own_keys(message: str) -> str:
    """The same with the keys of conf/evaluate.yaml."""
    return message.replace("data.max_response_length", "max_response_length").replace("rollout.max_model_len", "max_context")
