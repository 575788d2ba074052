"""What happens to each row between its source and its file: read, checked, de-duplicated, styled, measured, counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from unify_posttrain.preparation.lengths import TokenCounter
from unify_posttrain.preparation.local_rows import WHOLE_ROW, Line
from unify_posttrain.preparation.options import Options
from unify_posttrain.preparation.prompts import PromptStyle
from unify_posttrain.preparation.report import Report
from unify_posttrain.preparation.rows import (
    DUPLICATE,
    EMPTY_TARGET,
    FAULTS,
    GOLD,
    MALFORMED,
    TOO_LONG,
    Candidate,
    Reader,
    RowFault,
    as_record,
    check_texts,
)
from unify_posttrain.preparation.values import media_columns

_DIGEST_BYTES = 16  # one prompt that is kept costs this much memory


class Sieve:
    """Lets the usable rows of one split through and counts the others.

    Args:
        name: of the source and split, for messages.
        options: what to drop.
        style: of the prompts.
        counter: of tokens; None: lengths are not looked at.
    """

    def __init__(self, name: str, options: Options, style: PromptStyle, counter: TokenCounter | None) -> None:
        self.name, self.options, self.style, self.counter = name, options, style, counter
        self.report = Report()
        self._kept: set[bytes] = set()
        self._gradable: dict[str, bool] = {}

    def sift(self, chunk: Sequence[tuple[str, Line]], reader: Reader) -> list[dict[str, Any]]:
        """Records (see :func:`rows.as_record`) of the rows that are kept, in order.

        Raises:
            ValueError: a faulty row under `on_bad_row=error`, or a prompt that the chat template does not take; names source, row
                and column.
        """
        outcomes = [(place, self._read(row, reader)) for place, row in chunk]
        self._ask_about_golds([each for _, each in outcomes if isinstance(each, Candidate)])
        read = [(place, self._taken(place, outcome)) for place, outcome in outcomes]
        places = [f"{self.name}, {place}" for place, candidate in read if candidate is not None]
        candidates = [candidate for _, candidate in read if candidate is not None]
        kept = [row for (_, row), (_, candidate) in zip(chunk, read, strict=True) if candidate is not None]
        self._count_media(kept, reader.images)
        if self.counter is None:
            measured = [(0, [0] * len(item.targets)) for item in candidates]
        else:
            measured = self.counter.measure(candidates, places)
        records = []
        for candidate, (prompt_length, target_lengths) in zip(candidates, measured, strict=True):
            record = self._keep(candidate, prompt_length, target_lengths)
            if record is not None:
                records.append(record)
        self.report.kept += len(records)
        return records

    def _count_media(self, rows: Iterable[Line], kept: str | None) -> None:
        for row in rows:
            if not isinstance(row, RowFault):
                self.report.media.update(column for column in media_columns(row) if column != kept)

    def _read(self, row: Line, reader: Reader) -> Candidate | RowFault:
        self.report.read += 1
        try:
            if isinstance(row, RowFault):
                return row
            candidate = reader.read(row)
            check_texts(candidate)
            candidate = replace(candidate, prompt=self.style.apply(candidate.prompt))
        except RowFault as fault:
            return fault
        except RecursionError:  # of whatever looked at it: a reader, the style
            return RowFault(MALFORMED, WHOLE_ROW, "is nested too deeply")
        except UnicodeError as error:  # half of a pair of UTF-16, which JSON can write and no file can hold
            return RowFault(MALFORMED, WHOLE_ROW, f"holds text that is no Unicode ({error.reason})")  # type: ignore[attr-defined]
        if reader.has_targets and not candidate.targets and self.options.missing_target == "drop":
            return RowFault(EMPTY_TARGET, "target", "holds no text (prepare.task.missing_target=keep keeps such rows)")
        if self._is_repeated(candidate):
            return RowFault(DUPLICATE, "prompt", "has been seen")
        return candidate

    def _taken(self, place: str, outcome: Candidate | RowFault) -> Candidate | None:
        """The row if it stays; the others are counted, or end the preparation."""
        if isinstance(outcome, Candidate):
            if outcome.style == "model" or self._gradable.get(outcome.ground_truth, True):
                return outcome
            version, truth = self.options.gold_version, outcome.ground_truth
            outcome = RowFault(GOLD, "ground_truth", f"version {version} of the reward cannot parse {truth[:60]!r}")
        self._drop(outcome, place)
        return None

    def _drop(self, fault: RowFault, place: str) -> None:
        if fault.reason in FAULTS:
            message = f"{self.name}, {place}: {fault}"
            if self.options.on_bad_row == "error":
                raise ValueError(f"{message}; mend the row, or set prepare.task.on_bad_row=drop") from fault
            if len(self.report.examples) < self.options.examples:
                self.report.examples.append(message)
        self.report.dropped[fault.reason] += 1

    def _is_repeated(self, candidate: Candidate) -> bool:
        return self.options.deduplicate and _digest(candidate) in self._kept

    def _ask_about_golds(self, candidates: Sequence[Candidate]) -> None:
        """Whether their ground truths can be graded: those of a chunk at once, each of which is a call of another process."""
        if self.options.gold_version is None:
            return
        new = {item.ground_truth for item in candidates if item.style != "model"} - self._gradable.keys()
        if new:
            from unify_posttrain.rewards.math import gradable

            truths = sorted(new)
            self._gradable.update(zip(truths, gradable(truths, self.options.gold_version, **self.options.grader), strict=True))

    def _keep(self, candidate: Candidate, prompt_length: int, target_lengths: Sequence[int]) -> dict[str, Any] | None:
        """The record, unless a row of the same chunk had this prompt or something is too long."""
        report, options = self.report, self.options
        if self._is_repeated(candidate):
            report.dropped[DUPLICATE] += 1
            return None
        targets = candidate.targets
        skipped = dict(candidate.skipped)
        if self.counter is not None:
            report.prompt_lengths.append(prompt_length)
            report.target_lengths.extend(target_lengths)
            if options.too_long == "drop":
                limit = options.max_response_length
                targets = tuple(item for item, length in zip(targets, target_lengths, strict=True) if length <= limit)
                if prompt_length > options.max_prompt_length or (candidate.targets and not targets):
                    report.dropped[TOO_LONG] += 1
                    return None
                if len(targets) < len(candidate.targets):
                    skipped[TOO_LONG] = len(candidate.targets) - len(targets)
        if options.deduplicate:
            self._kept.add(_digest(candidate))
        report.traces.update(skipped)
        return as_record(candidate, targets)


def _digest(candidate: Candidate) -> bytes:
    """Of what is asked: the prompt without its system message, which `prepare.task.system` may have changed, and its pictures."""
    asked = [message["content"].strip() for message in candidate.prompt if message["role"] != "system"]
    text = "\x1e".join([*asked, *candidate.images])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
