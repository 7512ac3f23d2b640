"""The report of a validation pass: what a data set holds, and every row that cannot be used with its reason.

`report.json` is for programs, `report.html` the same for people. Per split: how many annotations there are, how many of them can be used,
and the distributions of these: the four dimensions, categories, masks per record, size of targets, length of instructions, image sizes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.atomic import make_folder, write_json
from data_pipeline.distributions import Distributions
from data_pipeline.pages.report_page import write_report_page
from data_pipeline.sources.source import Source
from data_pipeline.validation import CheckedRow, Validated

REPORT, REPORT_PAGE = "report.json", "report.html"
_FORMAT = "segearth-r2-validation-report"
_VERSION = 1


def make_report(source: Source, folder: Path, validated: Validated, command: str = "") -> dict[str, Any]:
    """The report as JSON values; counts are of the rows that can be used."""
    splits = {}
    for split, rows in validated.rows.items():
        rejected = validated.rejected_in(split)
        splits[split] = {"annotations": len(rows) + rejected, "records": len(rows), "rejected": rejected, **_describe(rows)}
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "source": source.name,
        "title": source.title,
        "home": source.home,
        "licence": source.licence,
        "command": command,
        "splits": splits,
        "rejected": [
            {"split": entry.split, "name": _relative(entry.rejection.name, folder), "reason": _relative(entry.rejection.reason, folder)}
            for entry in validated.rejected
        ],
        "notes": list(validated.notes),
    }


def _describe(rows: Sequence[CheckedRow]) -> dict[str, Any]:
    found = Distributions()
    for row in rows:
        found.count(
            row.annotation.tags, row.annotation.instruction, row.check.areas, (row.check.width, row.check.height), row.check.image_sha256
        )
    return found.to_dict()


def _relative(text: str, folder: Path) -> str:
    """Names within the data set, so that the report of a data set is the same wherever it lies."""
    return text.replace(f"{folder}{os.sep}", "")


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Writes report.json and report.html into `folder`, each under a temporary name first; UserError if that cannot be done."""
    path = folder / REPORT
    make_folder(folder)
    write_json(path, report)
    write_report_page(report, folder / REPORT_PAGE)
