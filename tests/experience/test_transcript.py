"""Transcripts of several turns: the budget's vectors, seeds, the frame of chat templates, replayed targets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.chat import ChatTemplate, TemplateRefusedError
from unify_posttrain.experience.transcript import Transcript, TurnBudget, TurnFrame, replay, turn_seed
from unify_posttrain.tasks.tokenizer import build_tokenizer

AROUND, LEAST, PENALTY = 9, 16, -1
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

Turn = tuple[int, float, int]  # tokens that the policy would generate, reward, tokens of the feedback


def play(prompt: int, budget: TurnBudget, turns: list[Turn], solved: float = 5) -> Transcript:
    """The loop, with answers that are known beforehand; the last reward has the penalty of the environment already."""
    transcript = Transcript(prompt, budget)
    while cap := transcript.room():
        tokens, reward, feedback = turns[transcript.turns]
        complete = tokens <= cap
        transcript.answer([7] * min(tokens, cap))
        limited = complete and transcript.turns == budget.max_turns and reward != solved
        transcript.judged(reward + PENALTY * limited, complete, reward == solved or limited, reward == solved)
        if transcript.stop is None:
            transcript.feedback([8] * (AROUND + feedback))
    return transcript


WRONG = (70, -1, 30)
VECTORS: list[tuple[str, int, int, int | None, list[Turn], tuple[int, int, int], list[float], str]] = [
    ("G1", 300, 1024, None, [(70, 5, 0)], (70, 70, 1), [5], "solved"),
    ("G2", 300, 1024, None, [(70, -2, 24), (68, -1, 31), (72, 5, 0)], (283, 210, 3), [-2, -1, 5], "solved"),
    ("G3", 300, 1024, None, [WRONG] * 5, (506, 350, 5), [-1, -1, -1, -1, -2], "turns"),
    ("G4", 300, 300, None, [WRONG] * 5, (288, 210, 3), [-1, -1, -1], "length"),
    ("G5", 300, 1024, None, [(400, -3, 20)], (128, 128, 1), [-3], "length"),
    ("G6", 300, 1024, None, [(400, 5, 0)], (128, 128, 1), [5], "solved"),
    ("G7", 300, 200, None, [WRONG, (90, -1, 30), (70, 5, 0)], (199, 160, 2), [-1, -1], "length"),
    ("G8", 900, 1024, 1100, [WRONG, WRONG, (70, 5, 0)], (179, 140, 2), [-1, -1], "length"),
]


@pytest.mark.parametrize(("prompt", "room", "limit", "turns", "sizes", "rewards", "stop"), [each[1:] for each in VECTORS],
                         ids=[each[0] for each in VECTORS])  # fmt: skip
def test_vectors(
    prompt: int, room: int, limit: int | None, turns: list[Turn], sizes: tuple[int, int, int], rewards: list[float], stop: str
) -> None:
    found = play(prompt, TurnBudget(5, 128, LEAST, room, limit), turns)
    assert (len(found.ids), sum(found.mask), found.turns) == sizes
    assert (found.rewards, found.stop) == (rewards, stop)
    assert found.mask[-1] == 1 and len(found.mask) == len(found.ids) == len(found.log_probs)
    assert [found.ids[begin:end] == [7] * (end - begin) for begin, end in found.spans] == [True] * found.turns
    assert sum(end - begin for begin, end in found.spans) == sum(found.mask)


def test_spans_of_three_turns() -> None:
    found = play(300, TurnBudget(5, 128, LEAST, 1024), [(70, -2, 24), (68, -1, 31), (72, 5, 0)])
    assert found.spans == [(0, 70), (103, 171), (211, 283)]


@given(
    st.lists(st.tuples(st.integers(1, 200), st.sampled_from([-3.0, -1.0, 5.0]), st.integers(0, 90)), min_size=6, max_size=6),
    st.integers(16, 900),
    st.integers(1, 5),
    st.integers(16, 130),
    st.integers(1, 700),
)
def test_no_transcript_outgrows_its_budget(turns: list[Turn], room: int, most: int, cap: int, prompt: int) -> None:
    budget = TurnBudget(most, cap, LEAST, room, 1000)
    found = play(prompt, budget, turns)
    assert found.stop is not None and len(found.ids) <= room and prompt + len(found.ids) <= max(1000, prompt)
    assert found.turns <= most and all(end - begin <= cap for begin, end in found.spans)
    assert not found.ids or found.mask[-1] == 1
    assert found.stop != "turns" or found.turns == most


def test_seeds_of_turns() -> None:
    assert [turn_seed(12345, turn) for turn in range(4)] == [12345, 671067976, 1175421177, 675357438]
    assert [turn_seed(0, turn) for turn in range(3)] == [0, 1817441348, 993632895]


def test_given_tokens_belong_to_the_first_turn() -> None:
    for trained, span in ((True, (0, 7)), (False, (4, 7))):
        transcript = Transcript(10, TurnBudget(2, 50, 2, 60))
        transcript.begin_with([1, 2, 3, 4], trained)
        assert transcript.room() == 50
        transcript.answer([5, 6, 7], [-0.1, -0.2, -0.3])
        assert transcript.spans == [span] and transcript.mask == [int(trained)] * 4 + [1, 1, 1]
        assert transcript.log_probs == [0, 0, 0, 0, -0.1, -0.2, -0.3]
    with pytest.raises(ValueError, match="only the first answer begins with given tokens"):
        transcript.begin_with([1], True)


def test_an_environment_that_ends_early_and_one_that_is_played_wrongly() -> None:
    transcript = Transcript(10, TurnBudget(5, 50, 2, 60))
    with pytest.raises(ValueError, match="an answer of 51 tokens, where 1 to 50 have room"):
        transcript.answer([1] * 51)
    with pytest.raises(ValueError, match="0 rewards for 0 answers"):
        transcript.judged(1, True, False, False)
    transcript.answer([1])
    with pytest.raises(ValueError, match="answer 1 was not judged"):
        transcript.answer([1])
    with pytest.raises(ValueError, match="feedback follows a judged answer"):
        transcript.feedback([1])
    transcript.judged(-5, True, True, False)
    assert transcript.stop == "ended" and transcript.room() == 0


def test_budgets_that_hold_no_turn_or_not_all() -> None:
    budget = TurnBudget(5, 128, 16, 1024, 1200)
    assert budget.check(prompt_length=176, around=9, feedback=30) is None  # 5·128 + 4·39 = 796 of 1024
    assert TurnBudget(5, 128, 16, 796).check(300, 9, 30) is None
    # behind a prompt of 500, 1200 - 500 = 700 are left
    warning = budget.check(500, 9, 30)
    assert warning is not None and "max_turns=5" in warning and "are 796 tokens" in warning and "room for 700" in warning
    with pytest.raises(ValueError, match=r"environment.min_turn_tokens=16: behind a prompt of 1190 tokens .* room for 10 .*raise"):
        budget.check(1190, 9, 30)


# --- chat templates ----------------------------------------------------------------------------------------------------


class Chat:
    """A tokenizer of characters with any template; special tokens of ChatML count as one."""

    eos_token, name_or_path = "<|im_end|>", "a model"
    WORDS = ("<|im_start|>", "<|im_end|>", "assistant", "user")

    def __init__(self, template: str) -> None:
        import jinja2

        self.template = jinja2.Template(template)

    def apply_chat_template(self, messages: Any, tokenize: bool, **options: Any) -> Any:
        assert not tokenize
        return self.template.render(messages=messages, **{k: v for k, v in options.items() if k != "return_dict"})

    def encode(self, text: str) -> list[int]:
        found = []
        while text:
            word = next((each for each in self.WORDS if text.startswith(each)), text[0])
            found.append(self.WORDS.index(word) if word in self.WORDS else 10 + ord(word))
            text = text[len(word) :]
        return found


def test_frame_of_chatml() -> None:
    chat = Chat(CHATML)
    frame = TurnFrame.from_template(ChatTemplate(chat), chat.encode, "<|im_end|>")
    assert frame.before == tuple(chat.encode("\n<|im_start|>user\n"))
    assert frame.after == tuple(chat.encode("<|im_end|>\n<|im_start|>assistant\n"))
    assert (len(frame.before), len(frame.after), len(frame)) == (4, 5, 9)
    assert frame.around([99]) == [*frame.before, 99, *frame.after]


def test_frame_of_the_character_tokenizer() -> None:
    tokenizer = build_tokenizer(64)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    frame = TurnFrame.from_template(ChatTemplate(tokenizer), encode, tokenizer.eos_token)
    assert (frame.before, frame.after) == ((4,), (1, 5))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            CHATML.replace("<|im_end|>", "</s>"),
            r"the chat template of a model ends an answer with '</s>.*not with the end token <\|im_end\|>",
        ),
        ("{{ messages[0]['content'] }}", r"the chat template of a model does not repeat an answer and the message after it"),
        ("{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}", r"does not repeat .*custom_chat_template=…"),
    ],
)
def test_templates_that_make_no_turns(template: str, message: str) -> None:
    chat = Chat(template)
    with pytest.raises(ValueError, match=message):
        TurnFrame.from_template(ChatTemplate(chat), chat.encode, "<|im_end|>")


def test_a_template_that_takes_no_answer() -> None:
    chat = Chat("{% for m in messages %}{{ m['role'].no.such }}{% endfor %}")
    with pytest.raises(TemplateRefusedError, match="refuses the prompt"):
        TurnFrame.from_template(ChatTemplate(chat), chat.encode, "<|im_end|>")


# --- replayed targets --------------------------------------------------------------------------------------------------


def test_a_replayed_target_is_the_recorded_rollout() -> None:
    """Ids and mask of a rollout with these answers and this feedback, built by the transcript itself."""
    tokenizer = build_tokenizer(64)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    frame, end = TurnFrame.from_template(ChatTemplate(tokenizer), encode, tokenizer.eos_token), tokenizer.eos_token_id
    said = ["{f:1+2}", "no:left 4", "{f:(1+2+3)*4=24}"]
    transcript = Transcript(10, TurnBudget(5, 64, 4, 400))
    transcript.answer([*encode(said[0]), end])
    transcript.judged(-2, True, False, False)
    transcript.feedback(frame.around(encode(said[1])))
    transcript.answer([*encode(said[2]), end])
    transcript.judged(5, True, True, True)
    roles = ("assistant", "user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    found = replay(messages, frame, encode, end, tokenizer.eos_token)
    assert (list(found.ids), list(found.mask), list(found.spans)) == (transcript.ids, transcript.mask, transcript.spans)
    # one turn is a target as ever: its tokens and the end token
    alone = replay(messages[2:], frame, encode, end, tokenizer.eos_token)
    assert alone.ids == (*encode(said[2]), end) and set(alone.mask) == {1}


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["assistant", "user"], "assistant, user, …, assistant, not assistant, user"),
        (["user", "assistant"], "not user, assistant"),
        (["assistant", "assistant"], "not assistant, assistant"),
        ([], "not empty"),
    ],
)
def test_targets_that_are_no_turns(roles: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay([{"role": role, "content": "x"} for role in roles], TurnFrame((1,), (2,)), lambda text: [3], 0, None)
    with pytest.raises(ValueError, match="must have text content, not NoneType"):
        replay([{"role": "assistant", "content": None}], TurnFrame((1,), (2,)), lambda text: [3], 0, None)
