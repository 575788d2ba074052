r"""When are two answers equal? The typed reader first (`unify_posttrain.rewards.answers`), then, if asked for, math-verify.

The typed reader says yes, no, or that it cannot tell. Its no is a proof: another type, another order, a point at which two
expressions differ. math-verify is asked only where it cannot tell, for it accepts such pairs too. Text is never evaluated, and
nothing is simplified here; what math-verify does is bounded by processor time, and by the process that can be killed
(`unify_posttrain.rewards.pool`).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from unify_posttrain.rewards import plain
from unify_posttrain.rewards.answers.cleaning import clean
from unify_posttrain.rewards.answers.comparison import same
from unify_posttrain.rewards.answers.near import near
from unify_posttrain.rewards.answers.reader import MAX_CHARACTERS, read
from unify_posttrain.rewards.answers.spelling import says_nothing, too_large

logger = logging.getLogger(__name__)
plain.stand_in()
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that timeouts are ours to set, which they are

PROBE = r"\frac{5}{7}+w"  # an answer like no other
MATH_VERIFY_SECONDS = 0.8  # of processor time, for one comparison


def equal_answers(answer: str, gold: str, *, math_verify: bool = False, numeric: bool = False) -> bool:
    """Whether an extracted answer equals the ground truth.

    Args:
        answer, gold: as extracted, LaTeX or plain.
        math_verify: ask math-verify where the typed reader cannot tell.
        numeric: accept numeric equality as well (see `near`).

    Raises:
        TimeoutError: math-verify takes too long.
    """
    read_answer, read_gold = read(answer), read(gold)
    if says_nothing(read_answer) or says_nothing(read_gold):
        return False
    verdict = same(read_answer, read_gold)
    if verdict is None and math_verify and max(len(answer), len(gold)) <= MAX_CHARACTERS:
        # It drops primes, and what is too large for us to compute, sympy would try to compute.
        answerable = answer.count("'") == gold.count("'") and not (too_large(read_answer) or too_large(read_gold))
        verdict = answerable and same_by_math_verify(clean(answer), clean(gold))
    return bool(verdict) or (numeric and near(read_answer, read_gold))


def same_by_math_verify(answer: str, gold: str) -> bool:
    """math-verify's verdict on two LaTeX texts, which are put into math mode.

    Raises:
        TimeoutError: it takes more than MATH_VERIFY_SECONDS.
    """
    with _processor_time():
        parsed = [parse_latex(f"${text}$") for text in (gold, answer)]
        return bool(all(parsed) and verify(*parsed, timeout_seconds=None))


def same_as_published(text: str, gold: str) -> bool:
    r"""The verdict of the math-verify reward that LUFFY and ReLIFT publish: it finds the answer itself.

    The ground truth is put into a box, and read as LaTeX; in the text both LaTeX and plain numbers are looked for, the latter by a
    parser that evaluates nothing (`unify_posttrain.rewards.plain`).

    Raises:
        TimeoutError: it takes more than MATH_VERIFY_SECONDS.
    """
    with _processor_time():
        parsed = [parse_latex(f"\\boxed{{{gold}}}"), parse_published(text)]
        return bool(all(parsed) and verify(*parsed, timeout_seconds=None))


def parse_latex(text: str) -> list[object]:
    """What math-verify finds in a text, LaTeX only."""
    # Its own timeouts are signals, which work in the main thread alone and raise what no one expects.
    return parse(text, extraction_config=(LatexExtractionConfig(),), parsing_timeout=None)


def parse_published(text: str) -> list[object]:
    """What math-verify finds in a text as the published reward calls it, plain numbers included."""
    return parse(text, extraction_config=(ExprExtractionConfig(), LatexExtractionConfig()), parsing_timeout=None)


class _OutOfTime(BaseException):
    """No `except Exception` of a library must catch it."""


@contextmanager
def _processor_time() -> Iterator[None]:
    """End what is inside after MATH_VERIFY_SECONDS of processor time; in the main thread, where graders work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, MATH_VERIFY_SECONDS)
        yield
    except _OutOfTime:
        raise TimeoutError(f"math-verify took more than {MATH_VERIFY_SECONDS} s of processor time") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
