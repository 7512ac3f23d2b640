"""The page of a validation report: what each split holds, and what cannot be used, grouped by reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.pages.distribution_plots import distribution_plots
from data_pipeline.pages.markup import Markup, element, page, section, table, totals, write_page
from data_pipeline.review_decisions import REASON as REVIEWED

# Per reason. All of them are in report.json.
_LISTED = 100


def write_report_page(report: Mapping[str, Any], path: Path) -> None:
    """Writes the page of a report (`data_pipeline.report`) to the file `path`; UserError naming it if that cannot be done."""
    write_page(path, report_page(report))


def report_page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    rows = [
        [split, *(f"{found[key]:,}" for key in ("annotations", "records", "rejected", "images", "masks"))]
        for split, found in report["splits"].items()
    ]
    facts = [("source", f"{report['title']} ({report['source']})"), ("home", report["home"]), ("licence", report["licence"])]
    if report["command"]:
        facts.append(("command", element("code", report["command"])))
    return page(
        f"Validation of {report['title']}",
        totals([(key, sum(found[key] for found in report["splits"].values())) for key in ("annotations", "records", "rejected")]),
        section("Splits", table(("split", "annotations", "records", "rejected", "images", "masks"), rows, numbers=range(1, 6))),
        section("Notes", element("ul", *(element("li", note) for note in report["notes"]))) if report["notes"] else None,
        _rejected(report["rejected"]),
        *(
            element("div", element("h2", f"Records of {split}", class_="part"), distribution_plots(found))
            for split, found in report["splits"].items()
            if found["records"]
        ),
        section("Where it is from", table(("", ""), facts)),
        subtitle="Rejected annotations are left out of the shards; counts are of the others.",
    )


def _rejected(rejected: Sequence[Mapping[str, str]]) -> Markup:
    if not rejected:
        return section("Rejected annotations", note="None: every annotation can be used.")
    groups: dict[str, list[Mapping[str, str]]] = {}
    for entry in rejected:
        groups.setdefault(kind_of_reason(entry["reason"]), []).append(entry)
    parts = []
    for kind, entries in sorted(groups.items(), key=lambda item: -len(item[1])):
        rows = [(entry["split"], entry["name"], entry["reason"]) for entry in entries[:_LISTED]]
        note = f"The first {_LISTED}; report.json has all of them." if len(entries) > _LISTED else None
        parts.append(
            element(
                "details",
                element("summary", element("span", f"{len(entries):,}", class_="count"), kind),
                None if note is None else element("p", note, class_="note"),
                table(("split", "annotation", "reason"), rows),
                open=len(groups) == 1,
            )
        )
    return section("Rejected annotations", *parts, note="Grouped by reason; … stands for what differs.")


def kind_of_reason(reason: str) -> str:
    """A reason without what differs from row to row: quoted words, files, numbers."""
    if reason.startswith(f"{REVIEWED}:"):  # What follows is a person's note.
        return REVIEWED
    kind = re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason)
    kind = re.sub(r"\S*/\S+|\S+\.(?:png|jpe?g|tiff?|json|jsonl)\b", "…", kind)
    kind = re.sub(r"-?\d+(?:[.,]\d+)*", "…", kind)
    return re.sub(r"…(?:[ x,×]*…)+", "…", kind)
