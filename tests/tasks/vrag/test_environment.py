"""Episodes: layouts L and T with the ids of Qwen's frames and a stand-in tokenizer; what is shown, counted, rewarded; faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tasks.vrag.kit import environment, make_corpus, row, settings
from unify_posttrain.experience.feedback import ImageFrame, feedback_ids, images_of
from unify_posttrain.experience.transcript import Transcript, TurnBudget, TurnFrame, replay
from unify_posttrain.rewards.contract import RESERVED, Contract
from unify_posttrain.tasks.environment import compute_score, had_outage, make_environment
from unify_posttrain.tasks.turns import ImagePart, Step
from unify_posttrain.tasks.vrag import protocol
from unify_posttrain.tasks.vrag.environment import Vrag, view_of
from unify_posttrain.tasks.vrag.retrieval import Page, RetrievalError
from unify_posttrain.tasks.waiting import settled

# <|im_start|>, <|im_end|>, newline, user, assistant; vision begin, pad, end
FRAME = TurnFrame((198, 151644, 872, 198), (151645, 198, 151644, 77091, 198))
IMAGES = ImageFrame(151652, 151655, 151653)
EOS, WORD, BODY = 151645, 7, 20
SEARCH, BOX, ANSWER = "<search>revenue forecast</search>", "<bbox>[100, 50, 300, 200]</bbox>", "<answer>12</answer>"
WEIGHTS = {"judge": 0.7, "format": 0.1, "ndcg": 0.2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("vrag") / "corpus")


class Found:
    """A retriever that answers one list after another."""

    def __init__(self, *lists: Sequence[Page] | Exception) -> None:
        self.lists = list(lists)

    async def search(self, queries: list[str], top_k: int) -> list[list[Page]]:
        found = self.lists.pop(0)
        if isinstance(found, Exception):
            raise found
        return [list(found)[:top_k] for _ in queries]


def encode(text: str) -> list[int]:
    """Every text is twenty tokens."""
    assert text
    return [8] * BODY


def play(made: Vrag, turns: Sequence[tuple[str, int]], room: int, cap: int = 256, data: Any = None) -> Transcript:
    """The loop of training with answers that are known, each of so many tokens with its end token; the text is what was sampled."""
    made.reset(row() if data is None else data)
    transcript = Transcript(100, TurnBudget(made.generations, cap, 32, room))
    while allowed := transcript.room():
        text, tokens = turns[transcript.turns]
        complete = tokens <= allowed
        ids = [WORD] * (tokens - 1) + [EOS]
        transcript.answer(ids[:allowed])
        step = settled(made.step(text, complete))
        transcript.judged(step.reward, complete, step.done, step.solved)
        if transcript.stop is None:
            transcript.feedback(FRAME.around(feedback_ids(step.feedback, encode, IMAGES)), images_of(step.feedback))
    return transcript


def sizes(transcript: Transcript) -> tuple[int, int, int]:
    return len(transcript.ids), sum(transcript.mask), len(transcript.images)


def test_l1_search_crop_answer(corpus: Path) -> None:
    made = environment(corpus, max_turns=3)
    found = play(made, [(SEARCH, 60), (BOX, 40), (ANSWER, 30)], 2000)
    assert (sizes(found), found.stop) == ((931, 130, 2), "solved")
    fields = made.fields()
    assert (fields["answered"], fields["n_search"], fields["n_crop"], fields["n_images"]) == (1, 1, 1, 2)
    assert [image.tokens for image in found.images] == [494, 285] and fields["image_tokens"] == 779
    assert [(image.origin["page_id"], image.origin["rect"]) for image in found.images] == [
        ("deck_2", [0, 0, 1600, 1200]), ("deck_2", [219, 112, 660, 452]),
    ]  # fmt: skip
    assert [image.image.size for image in found.images] == [(728, 532), (532, 420)]
    # newline, im_start, user, newline, vision begin, pads, vision end, im_end, newline, im_start, assistant, newline
    assert found.ids[60:66] == [198, 151644, 872, 198, 151652, 151655]
    assert found.ids[60 + 5 + 494 : 60 + 11 + 494] == [151653, 151645, 198, 151644, 77091, 198]
    assert found.ids.count(151655) == 779 and found.mask[60:565] == [0] * 505


def test_l2_a_cut_turn_executes_nothing(corpus: Path) -> None:
    made = environment(corpus, max_turns=3)
    found = play(made, [(SEARCH, 60), (SEARCH, 50), ("x" * 300, 300)], 1200)
    assert (sizes(found), found.stop) == ((1200, 190, 2), "length")
    assert found.spans[-1][1] - found.spans[-1][0] == 80
    assert made.shown == ["deck_2", "memo_1"] and made.fields()["answered"] == 0


def test_l3_the_last_turn_executes_nothing(corpus: Path) -> None:
    made = environment(corpus, max_turns=1)
    found = play(made, [(SEARCH, 60), (SEARCH, 50)], 4000)
    assert (sizes(found), found.stop) == ((615, 110, 1), "turns")
    fields = made.fields()
    assert (fields["n_search"], fields["outcome_search"], fields["outcome_unused"], fields["answered"]) == (1, 1, 1, 0)


def test_l4_invalid_and_nothing_new(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", (1700, 2200))
    page = Page("deck_1", corpus / "pages" / "deck_1.png", 1.0)
    made = environment(corpus, max_turns=4)
    made._retriever = Found([], [page])
    found = play(made, [("no action", 25), (SEARCH, 40), (SEARCH, 45), (ANSWER, 20)], 4000)
    assert (sizes(found), found.stop) == ((674, 130, 1), "solved")
    fields = made.fields()
    assert (fields["n_search"], fields["n_invalid"], fields["n_crop"], fields["search_errors"]) == (2, 1, 0, 0)
    assert not had_outage(made)


def test_what_no_answer_follows_was_never_shown(corpus: Path) -> None:
    """The page that matters comes second and finds no room: it must earn nothing."""
    made = environment(corpus)
    data = row(pages=(1,), document="memo.pdf")
    found = play(made, [(SEARCH, 60), (SEARCH, 50)], 1100, data=data)
    assert (sizes(found), found.stop) == ((615, 110, 1), "length")
    assert (made.shown, made.fields()["ndcg"], made.fields()["recall"]) == (["deck_2"], 0, 0)
    assert play(made, [(SEARCH, 60), (SEARCH, 50), (ANSWER, 9)], 1200, data=data).stop == "solved"
    assert made.fields()["ndcg"] == pytest.approx(0.63093, abs=1e-5)


# --- targets --------------------------------------------------------------------------------------------------------


def picture(tokens: int) -> ImagePart:
    return ImagePart(Image.new("RGB", (28, 28 * tokens)), tokens, {})


def target(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": ("assistant", "user")[place % 2], "content": content} for place, content in enumerate(contents)]


def test_t_a_target_that_is_replayed_and_one_that_is_too_long() -> None:
    messages = target("x" * 12, (picture(494),), "y" * 9)
    found = replay(messages, FRAME, lambda text: [WORD] * len(text), EOS, "<|im_end|>", IMAGES)
    assert (len(found.ids), sum(found.mask), len(found.images)) == (528, 23, 1)
    assert found.within(528, "truncate") is found
    short = found.within(527, "truncate")
    assert short is not None and (len(short.ids), sum(short.mask), short.images, short.spans) == (13, 13, (), ((0, 13),))
    assert found.within(527, "drop") is None and found.within(12, "truncate") is None


def test_nothing_is_cut_inside_an_image() -> None:
    messages = target("a", (picture(5), picture(6)), "b", "told", "c")
    found = replay(messages, FRAME, lambda text: [WORD] * len(text), EOS, None, IMAGES)
    for room in range(len(found.ids) + 1):
        short = found.within(room, "truncate")
        if short is not None:
            assert short.ids.count(IMAGES.pad) == sum(image.tokens for image in short.images)
            assert len(short.ids) <= room and short.mask[-1] == 1 and short.ids == found.ids[: len(short.ids)]


def test_a_replayed_rollout_has_its_ids_mask_and_images(corpus: Path) -> None:
    made = environment(corpus)
    made.reset(row())
    transcript, messages = Transcript(10, TurnBudget(5, 400, 4, 4000)), []
    for text in (SEARCH, BOX, "nothing", ANSWER):
        ids = [*map(ord, text), EOS]
        transcript.answer(ids)
        step = settled(made.step(text, True))
        transcript.judged(step.reward, True, step.done, step.solved)
        messages.append({"role": "assistant", "content": text})
        if transcript.stop is None:
            transcript.feedback(
                FRAME.around(feedback_ids(step.feedback, lambda text: [*map(ord, text)], IMAGES)), images_of(step.feedback)
            )
            messages.append({"role": "user", "content": step.feedback})
    found = replay(messages, FRAME, lambda text: [*map(ord, text)], EOS, "<|im_end|>", IMAGES)
    assert (list(found.ids), list(found.mask), list(found.images)) == (transcript.ids, transcript.mask, transcript.images)


def test_text_alone_has_the_tokens_that_it_had() -> None:
    assert feedback_ids(("ab", "c"), lambda text: [*map(ord, text)]) == [*map(ord, "abc")]
    with pytest.raises(ValueError, match="shows an image, and the model of this run sees none"):
        feedback_ids(("a", picture(3)), encode)
    with pytest.raises(ValueError, match="at least one token"):
        IMAGES.around(0)


def test_ids_of_an_image_are_looked_up_by_name() -> None:
    ids = {"<|vision_start|>": 151652, "<|image_pad|>": 151655, "<|vision_end|>": 151653}
    assert ImageFrame.from_names(ids.get, None) == IMAGES
    with pytest.raises(ValueError, match=r"has no token <\|image_pad\|>.*model=qwen2_5_vl_7b"):
        ImageFrame.from_names(lambda name: {**ids, "<|image_pad|>": 0}[name], 0)


# --- rewards and fields ---------------------------------------------------------------------------------------------


def fields_of(made: Vrag, *texts: str, data: Any = None) -> dict[str, Any]:
    made.reset(row() if data is None else data)
    for text in texts:
        step = settled(made.step(text, True))
        if step.done:
            break
    return made.fields()


@pytest.mark.parametrize(
    ("split", "changes", "texts", "score", "acc"),
    [
        ("train", {}, (SEARCH, ANSWER), 1.0, 1),  # .7 + .1 + .2
        ("train", {}, ("<search>quarterly</search>", ANSWER), 0.8, 1),  # another page: no gain
        ("train", {}, (SEARCH, "<answer>13</answer>"), 0.3, 0),
        ("test", {}, (SEARCH, "<answer>13</answer>"), 0, 0),
        ("test", {}, (SEARCH, ANSWER), 1, 1),
        ("train", {}, (ANSWER,), 0, 0),  # nothing was searched
        ("train", {"reward": {"weights": WEIGHTS, "require_search": False}}, (ANSWER,), 0.8, 1),
        ("train", {"score": "outcome"}, (SEARCH, "<answer>13</answer>"), 0, 0),
        ("train", {"score": "outcome"}, (SEARCH, ANSWER), 1, 1),
        ("train", {"score": "sum", "limit_penalty": -1}, (SEARCH,) * 5, -1, 0),
        ("train", {}, (SEARCH, SEARCH), 0, 0),
    ],
)
def test_scores(corpus: Path, split: str, changes: dict[str, Any], texts: tuple[str, ...], score: float, acc: float) -> None:
    found = fields_of(environment(corpus, **changes), *texts, data=row(split=split))
    assert (found["score"], found["acc"]) == (pytest.approx(score), acc)


def test_fields_have_the_same_keys_and_the_wrapper_can_say_them(corpus: Path) -> None:
    made, keys = environment(corpus), set()
    for texts in ((), (SEARCH,), (ANSWER,), ("<answer>\ud800\0</answer>",), (SEARCH, BOX, ANSWER), ("nothing",) * 5):
        found = fields_of(made, *texts)
        keys.add(tuple(found))
        Contract("here", 1000).read(found)
        json.dumps(found).encode()
        assert found["turns"] == sum(found[name] for name in found if name.startswith("outcome_"))
    assert len(keys) == 1 and set(keys.pop()) >= {"score", "acc", "format", "ndcg", "recall", "n_search", "n_crop", "n_invalid"}
    assert not (set(found) - {"score", "acc"}) & RESERVED


def test_one_answer_is_scored_as_any_reward_function_does(corpus: Path) -> None:
    data, own = row(), settings(corpus, reward={"weights": WEIGHTS, "require_search": False})
    found = compute_score("vrag", ANSWER, "12", data["extra_info"], environment=own)
    assert (found["score"], found["acc"], found["turns"]) == (pytest.approx(0.8), 1, 1)
    # a search is awaited, in the loop of whoever has none
    assert compute_score("vrag", SEARCH, "12", data["extra_info"], environment=own)["n_search"] == 1


def test_episodes_do_not_disturb_each_other(corpus: Path) -> None:
    async def one(query: str) -> list[str]:
        made = environment(corpus)
        made.reset(row())
        for text in (f"<search>{query}</search>", BOX, f"<search>{query}</search>", ANSWER):
            step = made.step(text, True)
            await step if not isinstance(step, Step) else step
        return made.shown

    async def all_of_them() -> list[list[str]]:
        return await asyncio.gather(*(one(query) for query in ("revenue forecast", "headcount", "quarterly", "zebra")))

    expected = [["deck_2", "memo_1"], ["deck_3", "memo_1"], ["deck_1"], []]
    assert asyncio.run(all_of_them()) == asyncio.run(all_of_them()) == expected  # a second loop, the same threads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_tag": "box"}, "environment.crop_tag='box' is unknown; choose one of bbox, region"),
        ({"top_k": 0}, "environment.top_k=0"),
        ({"images_per_search": 11}, "environment.top_k=10 is less than environment.images_per_search=11"),
        ({"retriever__kind": "faiss"}, "environment.retriever.kind='faiss' is unknown; choose one of bm25, dense, http"),
        ({"retriever__kind": "dense"}, "environment.retriever.kind=dense needs environment.retriever.vectors"),
        ({"retriever__url": "127.0.0.1:8000"}, "environment.retriever.url='127.0.0.1:8000': give the address"),
        ({"retriever__url": "http://me:secret@host"}, "without a password"),
        ({"retriever__timeout_s": 0}, "environment.retriever.timeout_s=0: give a number of seconds above 0"),
        ({"retriever__retries": -1}, "environment.retriever.retries=-1"),
        ({"retriever": {}}, "environment.retriever: b, batch, .* is unknown or missing"),
        ({"reward__require_search": 1}, "environment.reward.require_search=1: give true or false"),
        ({"reward__weights": {"judge": 1}}, "environment.reward.weights=.*give exactly judge, format, ndcg"),
        ({"judge__kind": "llm"}, "environment.judge.kind=llm needs environment.judge.model"),
        ({"judge__threshold": 0}, "environment.judge.threshold=0: give a number above 0 and up to 1"),
        ({"judge__rule": "bleu"}, "environment.judge.rule='bleu' is unknown; choose one of em, f1, anls"),
        ({"score": "sum", "credit": "turn"}, "environment.credit=turn: only the answer of an episode is rewarded"),
        ({"style": "native"}, "environment.style is unknown; its own keys are crop_tag"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(corpus: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        environment(corpus, **changes)


def test_rows_that_are_refused(corpus: Path) -> None:
    made = environment(corpus)
    with pytest.raises(TypeError, match=r"reward_model.ground_truth must be text or a list"):
        made.reset(row(answer=None))
    with pytest.raises(ValueError, match=r"extra_info.reference_page=\[2\] names pages of no document; give extra_info.file_name"):
        made.reset(row(document=None))  # type: ignore[arg-type]
    made.reset({"reward_model": {"ground_truth": "a"}})  # no page that matters
    assert made.gold == frozenset()


# --- faults ---------------------------------------------------------------------------------------------------------


def test_a_search_that_fails_is_said_and_counted(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = environment(corpus)
    made._retriever = Found(RetrievalError("dead"), KeyError("a bug"), [Page("x", corpus / "pages" / "none.png", 1.0)])
    found = fields_of(made, SEARCH, SEARCH, SEARCH, BOX)
    assert (found["n_search"], found["search_errors"], found["n_invalid"], made.views) == (3, 3, 1, [])
    assert had_outage(made)
    assert "a search failed: RetrievalError: dead" in caplog.text and "KeyError" in caplog.text and "cannot be shown" in caplog.text


def test_what_is_said_to_each_action(corpus: Path) -> None:
    made = environment(corpus)
    made.reset(row())
    told = [settled(made.step(text, True)).feedback for text in (BOX, "nothing", "<search>zebra</search>", SEARCH)]
    assert told[0][0] == protocol.no_crop("no image was shown yet") and told[1][0] == protocol.no_action("bbox")
    assert told[2][0] == protocol.NO_PAGE and isinstance(told[3][0], ImagePart)
    assert made.fields()["n_invalid"] == 2


def test_a_page_is_shown_once_and_boxes_mean_the_last_view(corpus: Path) -> None:
    made = environment(corpus, images_per_search=2)
    made.reset(row())
    parts = settled(made.step("<search>revenue</search>", True)).feedback
    assert [part.origin["page_id"] for part in parts] == ["deck_2", "deck_1"]
    again = settled(made.step("<search>revenue</search>", True)).feedback
    assert [part.origin["page_id"] for part in again] == ["memo_1"]
    crop = settled(made.step(BOX, True)).feedback[0]
    assert view_of(crop).page == "memo_1"
    deeper = settled(made.step("<bbox>[100, 100, 400, 300]</bbox>", True)).feedback[0]
    assert view_of(deeper).rect == (301, 192, 551, 355)
    # page by page another blue: what is shown is the page that is named
    assert [part.image.getpixel((5, 5))[0] for part in (*parts, crop)] == [40, 0, 120]


def test_a_cut_answer_counts_if_its_tag_is_closed(corpus: Path) -> None:
    made = environment(corpus)
    made.reset(row())
    settled(made.step(SEARCH, True))
    step = made.step(f"{ANSWER} and then", False)
    assert isinstance(step, Step) and step.solved and made.fields()["truncated"] == 1


def test_a_run_of_failures_earns_nothing(corpus: Path) -> None:
    """The published message on invalid actions held literal tags, which its own check of the form took for actions."""
    found = fields_of(environment(corpus), *["what?"] * 5)
    assert (found["format"], found["score"], found["n_invalid"]) == (0, 0, 4)


def test_settings_are_complete(corpus: Path) -> None:
    assert isinstance(make_environment(settings(corpus)), Vrag)
