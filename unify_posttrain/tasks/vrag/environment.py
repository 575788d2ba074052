"""VRAG as an environment: the model searches pages, enlarges parts of them, and answers.

A turn is one action. A search shows the best page that was not shown yet, a box a part of the view shown last, and an answer ends
the episode. A turn that was cut executes nothing, unless it holds a whole answer tag; neither does the last one that is generated.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from unify_posttrain.tasks.episodes import NODE, EpisodeSettings, trajectory_score
from unify_posttrain.tasks.turns import ImageLimits, ImagePart, Server, Step, readable
from unify_posttrain.tasks.vrag import protocol
from unify_posttrain.tasks.vrag.corpus import Corpus, PageError, gold_ids, image_size
from unify_posttrain.tasks.vrag.judging import references_of
from unify_posttrain.tasks.vrag.llm_judge import Judge, Judged
from unify_posttrain.tasks.vrag.retrieval import Page, RetrievalError, Retriever, make_retriever
from unify_posttrain.tasks.vrag.rewards import Outcome, ndcg, recall
from unify_posttrain.tasks.vrag.settings import JudgeSettings, VragSettings, check_episode
from unify_posttrain.tasks.vrag.showing import show, view_of
from unify_posttrain.tasks.vrag.targets import check_images, corpus_of, names_page, with_images
from unify_posttrain.tasks.vrag.views import TOKEN_PX, RefusedBoxError, View
from unify_posttrain.tasks.waiting import in_thread

logger = logging.getLogger(__name__)

TRAIN = "train"  # extra_info.split of rows that get the mixed score
OUTCOMES = ("search", "crop", "answer", "invalid", "unused")  # of turns; unused: cut, or the last one, and no answer
COUNTS = ("n_search", "n_crop", "n_invalid", "search_errors", "judge_errors")


class Vrag:
    """See :class:`~unify_posttrain.tasks.environment.Environment`.

    Args:
        settings: of episodes; `max_turns` counts searches and crops, one more answer is generated.
        own: the rest of the node `environment`.
        retriever: in the place of the one that the settings name.

    Raises:
        ValueError: settings that are missing, unknown or of a wrong type, or that lead to no corpus.
    """

    def __init__(self, settings: EpisodeSettings, own: Mapping[str, Any], retriever: Retriever | None = None) -> None:
        check_episode(settings)
        self.settings, self.own = settings, VragSettings.read(own)
        self.judge = _judge(json.dumps(self.own.judge.__dict__, sort_keys=True))
        self._retriever = retriever
        self._checked: set[Path] = set()
        self._begin()

    @property
    def generations(self) -> int:
        """Answers that are generated at most: the last one can only answer."""
        return self.settings.max_turns + 1

    @property
    def image_limits(self) -> ImageLimits:
        """Of an episode in which every turn is a search."""
        return ImageLimits(self.settings.max_turns * self.own.images_per_search, self.own.showing.max_pixels // TOKEN_PX**2)

    @property
    def servers(self) -> tuple[Server, ...]:
        """Of pages and of the judge, where they are asked over the network."""
        pages, judge = self.own.retriever, self.own.judge
        found = [Server(f"{NODE}.retriever.url", pages.url)] if pages.kind == "http" else []
        found += [Server(f"{NODE}.judge.url", str(judge.url), f"{judge.rule} judges in its place")] if judge.kind == "llm" else []
        return tuple(found)

    def check_processor(self, least: int, most: int) -> None:
        """See :meth:`Showing.check_processor`."""
        self.own.showing.check_processor(least, most)

    async def check_ready(self) -> None:
        """Search once.

        Raises:
            ValueError: no corpus, or no answer.
        """
        try:
            await self.retriever.search(["page"], 1)
        except RetrievalError as error:
            own = self.own.retriever
            remedy = f"start the server of {NODE}.retriever.url={own.url}" if own.kind == "http" else "mend it"
            raise ValueError(f"{NODE}.retriever: a search fails ({error}); with kind={own.kind}, {remedy}") from error

    def with_images(self, messages: Sequence[Mapping[str, str]], images: Sequence[str]) -> list[dict[str, Any]]:
        """See :func:`~unify_posttrain.tasks.vrag.targets.with_images`."""
        return with_images(messages, images, self._named(images), self.own)

    def check_images(self, messages: Sequence[Mapping[str, str]], images: Sequence[str]) -> None:
        """See :func:`~unify_posttrain.tasks.vrag.targets.check_images`; a file is read once in the life of this object."""
        check_images(messages, images, self._named(images), self.own, self._checked)

    def _named(self, images: Sequence[str]) -> Corpus | None:
        """The corpus, if one of the images is a page of it."""
        named = any(names_page(entry) for entry in images)
        return corpus_of(self.own.retriever.corpus, self.own.largest_page_px) if named else None

    @property
    def retriever(self) -> Retriever:
        """Made when it is first asked: judging an answer needs no corpus."""
        if self._retriever is None:
            self._retriever = make_retriever(self.own.retriever, self.own.largest_page_px)
        return self._retriever

    def reset(self, row: Mapping[str, Any]) -> None:
        """Begin with a row of `prepare task=vrag`.

        Raises:
            TypeError, ValueError: no reference answer, or pages that matter but no document of theirs.
        """
        self._begin()
        self.references = references_of((row.get("reward_model") or {}).get("ground_truth"))
        extra = row.get("extra_info") or {}
        self.question = str(extra.get("question") or "")
        self.training = extra.get("split") == TRAIN
        pages = extra.get("reference_page")
        pages = [] if pages is None else list(pages)
        if pages and not isinstance(extra.get("file_name"), str):
            raise ValueError(f"extra_info.reference_page={pages} names pages of no document; give extra_info.file_name")
        self.gold = frozenset(gold_ids(extra["file_name"], pages)) if pages else frozenset()

    def _begin(self) -> None:
        self.references: tuple[str, ...] = ()
        self.question, self.training = "", False
        self.gold: frozenset[str] = frozenset()
        self.counts = dict.fromkeys(COUNTS, 0)
        self.outcomes: list[str] = []
        self.rewards: list[float] = []
        self.views: list[View] = []
        self.shown: list[str] = []  # pages, in the order in which searches brought them
        self.tokens = 0
        self.images: dict[str, Path] = {}  # of pages
        self._pending: list[tuple[ImagePart, Path | None]] = []  # what the next answer will have seen
        self.answer: str | None = None
        self.judged = Judged(False)
        self.truncated = False

    def step(self, text: str, complete: bool) -> Step | Awaitable[Step]:
        """See :class:`Environment`. Only what looks at files or asks a server is awaited."""
        self._seen()
        self.truncated = not complete
        action = protocol.read_action(text, self.own.crop_tag)
        if action.kind == protocol.ANSWER:
            return self._answered(action.text)
        if not complete:
            return self._over("unused", 0.0)
        if len(self.outcomes) == self.settings.max_turns:
            return self._over("unused", self.settings.limit_penalty)
        self.outcomes.append(action.kind)
        self.rewards.append(0.0)
        if action.kind == protocol.SEARCH:
            self.counts["n_search"] += 1
            return self._search(action.text)
        if action.kind == protocol.CROP and action.box is not None:
            return self._crop(action.box)
        self.counts["n_invalid"] += 1
        return self._told(protocol.no_action(self.own.crop_tag))

    def _seen(self) -> None:
        """What was made of the action before is shown by now: the model has gone on. What no answer follows was never shown."""
        for part, image in self._pending:
            view = view_of(part)
            self.views.append(view)
            self.tokens += part.tokens
            if image is not None:
                self.shown.append(view.page)
                self.images[view.page] = image
        self._pending = []

    def _over(self, outcome: str, reward: float) -> Step:
        self.outcomes.append(outcome)
        self.rewards.append(reward)
        return Step(reward, done=True, outcome=outcome)

    # --- answers ---------------------------------------------------------------------------------------------------

    def _answered(self, answer: str) -> Step | Awaitable[Step]:
        self.answer = answer
        if not self._outcome.in_form(self.own.reward):
            return self._scored(Judged(False))
        if self.own.judge.kind == "rule":
            return self._scored(self.judge.by_rule(answer, self.references))
        return self._scored_by_model(answer)

    async def _scored_by_model(self, answer: str) -> Step:
        return self._scored(await self.judge.by_model(self.question, answer, self.references))

    def _scored(self, judged: Judged) -> Step:
        self.judged = judged
        self.counts["judge_errors"] += judged.failed
        reward = self._outcome.reward(self.own.reward, self.training)
        self._over(protocol.ANSWER, reward)
        return Step(reward, done=True, solved=judged.right, outcome=protocol.ANSWER)

    @property
    def _outcome(self) -> Outcome:
        answered = self.answer is not None
        return Outcome(answered, self.counts["n_search"], self.judged.right, ndcg(self.shown, self.gold))

    @property
    def outage(self) -> bool:
        """Whether a search or the judge failed."""
        return bool(self.counts["search_errors"] or self.counts["judge_errors"])

    # --- searches and crops ----------------------------------------------------------------------------------------

    async def _search(self, query: str) -> Step:
        try:
            pages = (await self.retriever.search([query], self.own.top_k))[0]
        except Exception as error:  # whatever a retriever does costs a turn, not a run of days
            logger.warning("%s.retriever: a search failed: %s: %s", NODE, type(error).__name__, error)
            self.counts["search_errors"] += 1
            return self._told(protocol.NO_SEARCH)
        found: dict[str, tuple[ImagePart, Path]] = {}
        failed = False
        for page in pages:
            if len(found) == self.own.images_per_search:
                break
            if page.page_id in self.shown or page.page_id in found:
                continue
            try:
                found[page.page_id] = await in_thread(self.own.threads, self._page, page), page.image
            except (PageError, RefusedBoxError) as error:
                logger.warning("%s.retriever.corpus: page %s cannot be shown: %s", NODE, page.page_id, error)
                failed = True
        self.counts["search_errors"] += failed
        if not found:
            return self._told(protocol.NO_IMAGE if failed else protocol.NO_PAGE)
        return self._showing(list(found.values()))

    async def _crop(self, box: protocol.Box) -> Step:
        try:
            if not self.views:
                raise RefusedBoxError("no image was shown yet")
            view = self.own.showing.crop(self.views[-1], box)
            part = await in_thread(self.own.threads, show, view, self.images[view.page], self.own)
        except RefusedBoxError as error:
            self.counts["n_invalid"] += 1
            self.outcomes[-1] = protocol.INVALID
            return self._told(protocol.no_crop(str(error)))
        except PageError as error:
            logger.warning("%s.retriever.corpus: %s", NODE, error)
            self.counts["search_errors"] += 1
            return self._told(protocol.NO_IMAGE)
        self.counts["n_crop"] += 1
        return self._showing([(part, None)])

    def _showing(self, found: Sequence[tuple[ImagePart, Path | None]]) -> Step:
        self._pending = list(found)
        return Step(0.0, done=False, feedback=tuple(part for part, _ in found), outcome=self.outcomes[-1])

    def _told(self, text: str) -> Step:
        return Step(0.0, done=False, feedback=(text,), outcome=self.outcomes[-1])

    def _page(self, page: Page) -> ImagePart:
        width, height = image_size(page.image, self.own.largest_page_px)
        return show(View(page.page_id, (0, 0, width, height)), page.image, self.own)

    def fields(self) -> dict[str, float | str]:
        """See :class:`Environment`."""
        turns, outcome = len(self.outcomes), self._outcome
        solved = self.judged.right and outcome.in_form(self.own.reward)
        found: dict[str, float | str] = {
            "score": trajectory_score(self.rewards, solved, self.settings.score),
            "acc": float(solved),
            "format": float(outcome.in_form(self.own.reward)),
            "ndcg": outcome.ndcg,
            "recall": recall(self.shown, self.gold),
            **{name: float(count) for name, count in self.counts.items()},
            "n_images": float(len(self.views)),
            "image_tokens": float(self.tokens),
            "turns": float(turns),
            "right_turns": float(solved),
            "first_acc": float(solved and turns == 1),
            "truncated": float(self.truncated),
            "answered": float(outcome.answered),
        }
        for name in OUTCOMES:
            found[f"outcome_{name}"] = float(self.outcomes.count(name))
        return {**found, "pred": readable(self.answer or "")}


@lru_cache(maxsize=8)
def _judge(settings: str) -> Judge:
    return Judge(JudgeSettings(**json.loads(settings)))
