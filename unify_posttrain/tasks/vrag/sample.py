"""The small corpus: four invented reports of three pages each, a text, a table and a chart, with questions and worked answers.

Everything in it is ours; the numbers are drawn by seed. What is asked has one answer, which stands on one page or follows from two.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from unify_posttrain.tasks.vrag.convert import Message, Question
from unify_posttrain.tasks.vrag.corpus import PageRecord
from unify_posttrain.tasks.vrag.drawing import Drawn, PageDrawer, number_text
from unify_posttrain.tasks.vrag.targets import IMAGE
from unify_posttrain.tasks.vrag.views import Rect, Showing, View

TEXT, TABLE, CHART, SEVERAL = "Text", "Table", "Chart", "Text and table"
SINGLE, MULTI = "Single-Hop", "Multi-Hop"
NUMBERS = (120, 9900)  # range of the drawn numbers, which are multiples of ten


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        stem: of its file name.
        title: at the top of its pages.
        headings: of its text, its table and its chart.
        facts: sentence on the first page -> what is asked, and the answer.
        measure: what the table counts, as questions name it.
        corner, columns, rows: of the table.
        alias: how a sentence of the first page describes one of the rows, and which.
        alias_sentence: that sentence.
        charted: what the chart shows, as questions name it.
        bars: their names.
    """

    stem: str
    title: str
    headings: tuple[str, str, str]
    facts: Mapping[str, tuple[str, str]]
    measure: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    alias: tuple[str, str]
    alias_sentence: str
    charted: str
    bars: tuple[str, ...]


REPORTS = (
    Report(
        "harbour_ferries", "Harbour Ferries: report of the year",
        ("The fleet and its crews", "Passengers by line", "Tickets sold by quarter"),
        {
            "The oldest boat, Marigold, was built in 1931 and still sails on Sundays.":
                ("In which year was the oldest boat of Harbour Ferries built?", "1931"),
            "Captain Ines Halvorsen leads a crew of 46 people.":
                ("Who leads the crew of Harbour Ferries?", "Captain Ines Halvorsen"),
        },
        "passengers did Harbour Ferries carry on the line", "line", ("2021", "2022", "2023"),
        ("Old Mole", "Lighthouse", "Fish Market", "North Beach"),
        ("that runs at night", "Lighthouse"), "Of the four lines only Lighthouse runs at night.",
        "tickets did Harbour Ferries sell in", ("spring", "summer", "autumn", "winter"),
    ),
    Report(
        "ridge_observatory", "Ridge Observatory: weather record",
        ("Where the stations stand", "Snow depth by station", "Visitors of the dome by month"),
        {
            "The highest station lies 2480 metres above the sea.":
                ("How many metres above the sea lies the highest station of Ridge Observatory?", "2480"),
            "Repairs of the antenna took 19 days after the storm.":
                ("How many days did the repairs of the antenna at Ridge Observatory take?", "19"),
        },
        "millimetres deep was the snow that Ridge Observatory measured at the station", "station",
        ("January", "February", "March"), ("Hut", "Saddle", "Glacier", "Forest"),
        ("that has no road", "Saddle"), "The station Saddle has no road and is reached on skis.",
        "visitors came to the dome of Ridge Observatory in", ("May", "June", "July", "August", "October"),
    ),
    Report(
        "canal_library", "Canal Library: a year of reading",
        ("The house and its books", "Loans by branch", "Evening guests by weekday"),
        {
            "The rarest book is a herbal of 1562, bound in blue goatskin.":
                ("From which year is the rarest book of Canal Library?", "1562"),
            "The reading room was designed by the architect Odile Brandt.":
                ("Which architect designed the reading room of Canal Library?", "Odile Brandt"),
        },
        "loans did Canal Library count at the branch", "branch", ("novels", "maps", "music"),
        ("Mill Street", "Station", "Orchard", "Lock"),
        ("that opens on Sundays", "Orchard"), "Orchard is the one branch that opens on Sundays.",
        "evening guests did Canal Library count on", ("Monday", "Tuesday", "Thursday", "Friday"),
    ),
    Report(
        "sandfield_solar", "Sandfield Solar: plant report",
        ("Panels and people", "Energy by field", "Costs by kind"),
        {
            "The first panels were switched on by the mayor, Pia Lindqvist.":
                ("Who switched on the first panels of Sandfield Solar?", "Pia Lindqvist"),
            "Sheep graze below the panels, 210 of them at last count.":
                ("How many sheep graze below the panels of Sandfield Solar?", "210"),
        },
        "megawatt hours did Sandfield Solar harvest on the field", "field", ("first half", "second half", "whole year"),
        ("Quarry", "Heath", "River Bend", "Airstrip"),
        ("that turns with the sun", "Heath"), "Only the panels of the field Heath turn with the sun.",
        "euros did Sandfield Solar spend on", ("cleaning", "repairs", "wages", "insurance", "fences"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Pages:
    """The three pages of a report, and the numbers on them."""

    report: Report
    drawn: tuple[Drawn, Drawn, Drawn]
    table: Mapping[str, Sequence[int]]
    chart: Mapping[str, int]


def draw_report(report: Report, seed: int) -> Pages:
    """A report with the numbers of a seed."""
    generator = random.Random(f"{seed}-{report.stem}")
    drawn = iter(generator.sample(range(*NUMBERS, 10), len(report.rows) * len(report.columns) + len(report.bars)))
    table = {row: [next(drawn) for _ in report.columns] for row in report.rows}
    chart = {bar: next(drawn) for bar in report.bars}
    text, rows, bars = (PageDrawer(report.title, heading) for heading in report.headings)
    for sentence in (*report.facts, report.alias_sentence):
        text.paragraph(sentence)
    rows.table(report.corner, report.columns, table)
    bars.bars(chart)
    return Pages(report, (text.page, rows.page, bars.page), table, chart)


def sample_pages(seed: int, folder: Path) -> Iterator[PageRecord]:
    """Draw the pages of all reports into `pages/` of a folder."""
    for report in REPORTS:
        for number, page in enumerate(draw_report(report, seed).drawn, start=1):
            name = f"pages/{report.stem}_{number}.png"
            page.image.save(folder / name)
            yield PageRecord(f"{report.stem}_{number}", name, page.text, f"{report.stem}.pdf", number)


def sample_questions(seed: int, showing: Showing, crop_tag: str, zoom: float) -> list[Question]:
    """Questions about the reports, each with a worked answer.

    Args:
        seed: of the numbers, and of which answers enlarge a part.
        showing: how views are shown and cropped.
        crop_tag: of the protocol.
        zoom: share of the worked answers that enlarge a part before they answer.
    """
    pages = [draw_report(report, seed) for report in REPORTS]
    return [question for each in pages for question in questions_of(each, seed, showing, crop_tag, zoom)]


def questions_of(pages: Pages, seed: int, showing: Showing, crop_tag: str, zoom: float) -> list[Question]:
    """The questions about one report; see :func:`sample_questions`."""
    generator = random.Random(f"{seed}-{pages.report.stem}-zoom")
    return list(_Writer(pages, showing, crop_tag, zoom, generator).questions())


@dataclass(frozen=True)
class _Writer:
    """Writes the questions of one report."""

    pages: Pages
    showing: Showing
    crop_tag: str
    zoom: float
    generator: random.Random

    def questions(self) -> Iterator[Question]:
        report = self.pages.report
        for place, (sentence, (asked, answer)) in enumerate(report.facts.items()):
            yield self._single(f"fact-{place}", asked, answer, 1, TEXT, sentence)
        for row, values in self.pages.table.items():
            for column, value in zip(report.columns, values, strict=True):
                asked = f"How many {report.measure} {row} ({column})?"
                yield self._single(f"cell-{row}-{column}", asked, number_text(value), 2, TABLE, row)
        for bar, value in self.pages.chart.items():
            yield self._single(f"bar-{bar}", f"How many {report.charted} {bar}?", number_text(value), 3, CHART, bar)
        described, row = report.alias
        for column, value in zip(report.columns, self.pages.table[row], strict=True):
            asked = f"How many {report.measure} {described} ({column})?"
            yield self._double(f"alias-{column}", asked, number_text(value), described, row)

    def _single(self, name: str, asked: str, answer: str, page: int, kind: str, place: str) -> Question:
        heading = self.pages.report.headings[page - 1]
        whole, rect = self._view(page), self.pages.drawn[page - 1].places[place]
        messages = [self._search(f'I need the page "{heading}".', page), {"role": "user", "content": IMAGE}]
        images = [whole]
        if self.generator.random() < self.zoom:
            box = self._box(whole, rect)
            messages += [
                _says(f"The {kind.lower()} is here. I look closer.", self.crop_tag, json.dumps(box)),
                {"role": "user", "content": IMAGE},
            ]
            left, top, right, bottom = map(Fraction, box)
            images.append(self.showing.crop(whole, (left, top, right, bottom)))
        messages.append(_says("Now I can read it.", "answer", answer))
        return self._question(name, asked, answer, (page,), kind, SINGLE, messages, images)

    def _double(self, name: str, asked: str, answer: str, described: str, row: str) -> Question:
        report = self.pages.report
        messages = [
            self._search(f'First I find out which {report.corner} it is {described}. That stands under "{report.headings[0]}".', 1),
            {"role": "user", "content": IMAGE},
            self._search(f'It is {row}. Its numbers are under "{report.headings[1]}".', 2),
            {"role": "user", "content": IMAGE},
            _says("Now I can read it.", "answer", answer),
        ]
        return self._question(name, asked, answer, (1, 2), SEVERAL, MULTI, messages, [self._view(1), self._view(2)])

    def _search(self, thought: str, page: int) -> Message:
        report = self.pages.report
        return _says(thought, "search", f"{report.title.partition(':')[0]} {report.headings[page - 1]}")

    def _view(self, page: int) -> View:
        width, height = self.pages.drawn[page - 1].image.size
        return View(f"{self.pages.report.stem}_{page}", (0, 0, width, height))

    def _box(self, view: View, rect: Rect) -> list[int]:
        """The box in shown pixels that holds a rectangle of the page."""
        width, height = self.showing.size(view.size)
        across, down = Fraction(width, view.size[0]), Fraction(height, view.size[1])
        left, top, right, bottom = rect
        return [int(left * across), int(top * down), -int(-right * across // 1), -int(-bottom * down // 1)]

    def _question(
        self,
        name: str,
        asked: str,
        answer: str,
        pages: tuple[int, ...],
        kind: str,
        reason: str,
        messages: list[Message],
        views: Sequence[View],
    ) -> Question:
        report = self.pages.report
        images = tuple(json.dumps({"page_id": view.page, "rect": list(view.rect)}) for view in views)
        return Question(
            f"{report.stem}-{name}", asked, (answer,), f"{report.stem}.pdf", pages, kind, reason, tuple(messages), images
        )


def _says(thought: str, tag: str, content: str) -> Message:
    return {"role": "assistant", "content": f"<think>{thought}</think>\n<{tag}>{content}</{tag}>"}
