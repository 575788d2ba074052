"""The doctor's lines for people and for programs."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from unify_posttrain.doctoring.findings import Finding, Status, worst
from unify_posttrain.output import clean_line

STYLES = {Status.GREEN: "green", Status.YELLOW: "yellow", Status.RED: "bold red"}
ENDS = {
    Status.GREEN: "nothing stands in the way",
    Status.YELLOW: "a run starts; what is yellow may hurt it",
    Status.RED: "what is red ends a run; correct it first",
}


def show(findings: Sequence[Finding], seconds: float, console: Console) -> None:
    """One line per check: status, name, what was found, and what to do."""
    names, words = max(len(each.name) for each in findings), max(len(each.value) for each in Status)
    for finding in findings:
        line = Text.assemble(
            (f"{finding.status.value:<{words}}", STYLES[finding.status]),
            clean_line(f"  {finding.name:<{names}}  {finding.found}"),
            (clean_line(f"; {finding.remedy}") if finding.remedy else "", "italic"),
        )
        console.print(line, soft_wrap=True)
    status = worst(findings)
    end = Text.assemble((status.value, STYLES[status]), f"  {socket.gethostname()}: {ENDS[status]} ({seconds:.1f} s)")
    console.print(end, soft_wrap=True)


def as_json(findings: Sequence[Finding], seconds: float) -> str:
    """{host, status, seconds, findings: [{name, status, found, remedy}]}"""
    report: dict[str, Any] = {
        "host": socket.gethostname(),
        "status": worst(findings).value,
        "seconds": round(seconds, 1),
        "findings": [
            {
                "name": clean_line(each.name),
                "status": each.status.value,
                "found": clean_line(each.found),
                "remedy": clean_line(each.remedy),
            }
            for each in findings
        ],
    }
    return json.dumps(report, indent=2)
