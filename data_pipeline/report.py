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
from data_pipeline.distributions import PIXEL_EDGES, SHARE_EDGES, Distributions, in_order
from data_pipeline.schema import DIMENSIONS
from data_pipeline.sources.source import Source
from data_pipeline.validation import CheckedRow, Validated

REPORT = "report.json"
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
    return {
        "images": found.images,
        "masks": found.targets,
        "empty_masks": found.empty_masks,
        "tags": {name: dict(in_order(counter, DIMENSIONS[name])) for name, counter in found.dimensions.items()},
        "categories": dict(in_order(found.categories)),
        "masks_per_record": {
            "withheld" if count is None else str(count): found.masks[count] for count in sorted(found.masks, key=_withheld_last)
        },
        "target_pixels": {"edges": list(PIXEL_EDGES), "counts": found.pixels},
        "target_share": {"edges": list(SHARE_EDGES), "counts": found.shares},
        "instruction_words": {str(words): found.words[words] for words in sorted(found.words)},
        "image_sizes": {f"{width}x{height}": count for (width, height), count in in_order(found.image_sizes)},
    }


def _withheld_last(count: int | None) -> tuple[bool, int]:
    return count is None, count or 0


def _relative(text: str, folder: Path) -> str:
    """Names within the data set, so that the report of a data set is the same wherever it lies."""
    return text.replace(f"{folder}{os.sep}", "")


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Writes report.json and report.html into `folder`, each under a temporary name first; UserError if that cannot be done."""
    path = folder / REPORT
    make_folder(folder)
    write_json(path, report)
