"""Samples on disk: a JSON line per sample, and beside them the settings that they were made with.

    FOLDER/settings.json      model, benchmark, prompts, sampling, engine and reward; written before the first sample
    FOLDER/samples.jsonl      appended chunk by chunk, each flushed to disk

A kill may cut the last line short; it is dropped when the folder is opened again, and only that sample is generated anew.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from unify_posttrain.redaction import redacted

logger = logging.getLogger(__name__)

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"
Losses = dict[int, tuple[float, int]]  # of worked answers: row -> (loss in nats, tokens)
FORMAT = 1  # raise it when the meaning of a sample changes


@dataclass(frozen=True)
class Sample:
    """One response and its verdict.

    Attributes:
        row: position of the problem in the benchmark's files.
        number: of the sample among the problem's, from 0.
        source: `data_source` of the problem.
        seed: that it was drawn with.
        response: decoded without special tokens, as the reward saw it.
        tokens: length of the response, its end token included.
        truncated: it was cut at the limit instead of ending by itself.
        score: of the reward function.
        correct: 1 or 0.
        answer: canonical answer, "" if none was found.
        gold_ok: 0 if the ground truth cannot be used.
        turns: of an episode: {text, feedback, reward, solved, tokens} of each answer, its `verdict` in a word, and where the
            `images` of its feedback come from, if it has some; None: there is one answer, `response`.
        prompt: of an episode: the message of the user that it began with.
        stop: why the episode ended (`unify_posttrain.experience.transcript`).
        fields: numbers that the environment gives for the episode.
    """

    row: int
    number: int
    source: str
    seed: int
    response: str
    tokens: int
    truncated: bool
    score: float
    correct: int
    answer: str
    gold_ok: int
    turns: list[dict[str, Any]] | None = None
    prompt: str | None = None
    stop: str | None = None
    fields: dict[str, float] | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.row, self.number


OF_EPISODES = ("turns", "prompt", "stop", "fields")
KEYS = {field.name for field in fields(Sample)} - set(OF_EPISODES)


class SampleStore:
    """Samples of one model on one benchmark.

    Args:
        folder: made if missing.
        settings: JSON-ready; what the samples depend on.
        overwrite: delete samples of other settings instead of refusing.

    Raises:
        ValueError: the folder holds samples of other settings, or a damaged line before the last.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.folder = Path(folder)
        self.path = self.folder / SAMPLES
        wanted = json.loads(json.dumps(redacted({"format": FORMAT, **settings})))  # as it will be read back
        if self._mismatch(wanted) is not None and overwrite:
            logger.warning("%s: samples of other settings are deleted (overwrite=true)", self.folder)
            shutil.rmtree(self.folder)
        mismatch = self._mismatch(wanted)
        if mismatch is not None:
            raise ValueError(
                f"{self.folder}: its samples were made with {mismatch}; give this evaluation another folder (output=…), or "
                "overwrite=true to delete them"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / SETTINGS, json.dumps(wanted, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        self.samples: dict[tuple[int, int], Sample] = {}
        self._read()

    def _mismatch(self, wanted: Mapping[str, Any]) -> str | None:
        """The first setting that differs, in words; None if the samples may be added to."""
        settings = self.folder / SETTINGS
        if not settings.exists():
            return "unknown settings" if self.path.exists() else None
        try:
            before = flat(json.loads(settings.read_text(encoding="utf-8")))
        except (ValueError, AttributeError):
            return f"settings that cannot be read ({SETTINGS} is damaged)"
        now = flat(wanted)
        for key in [*now, *(key for key in before if key not in now)]:
            old, new = before.get(key), now.get(key)
            if old != new or (key in before) != (key in now):
                return f"{key}={_short(old)}, which is now {_short(new)}"
        return None

    def _read(self) -> None:
        """Take the samples that are there; cut off a line that a kill left unfinished."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        lines = content.split(b"\n")
        last = lines.pop()  # what follows the last newline; empty unless a kill came in between
        for number, line in enumerate(lines, start=1):
            self._keep(_parse(line, f"{self.path}, line {number}"))
        if not last:
            return
        try:
            self._keep(_parse(last, f"{self.path}, line {len(lines) + 1}"))
        except ValueError:
            logger.warning("%s: the last line was cut short and is dropped", self.path)
            with open(self.path, "r+b") as file:
                file.truncate(len(content) - len(last))
        else:
            with open(self.path, "ab") as file:
                file.write(b"\n")

    def _keep(self, sample: Sample) -> None:
        self.samples.setdefault(sample.key, sample)

    def append(self, samples: Iterable[Sample]) -> None:
        """Add samples; they are on disk when this returns."""
        samples = list(samples)
        text = "".join(json.dumps(_line(sample), ensure_ascii=False) + "\n" for sample in samples)
        with open(self.path, "ab") as file:
            file.write(text.encode("utf-8", errors="surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
        for sample in samples:
            self._keep(sample)

    def ordered(self) -> list[Sample]:
        """All samples by problem and number, in whatever order they were generated."""
        return [self.samples[key] for key in sorted(self.samples)]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; anything else is a value."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}.{name}".lstrip(".")).items()}


def _line(sample: Sample) -> dict[str, Any]:
    """Without the keys of episodes where there was one answer."""
    return {key: value for key, value in asdict(sample).items() if sample.turns is not None or key not in OF_EPISODES}


def _parse(line: bytes, where: str) -> Sample:
    try:
        entry = json.loads(line.decode("utf-8", errors="surrogatepass"))
    except ValueError as error:
        raise ValueError(f"{where} is damaged ({error}); delete the line, its sample is then generated again") from None
    if not isinstance(entry, dict) or set(entry) not in (KEYS, KEYS | set(OF_EPISODES)):
        raise ValueError(f"{where} is no sample of this format; delete the folder, or give another output=…")
    return Sample(**entry)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
