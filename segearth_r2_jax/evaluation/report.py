"""The report of an evaluation: one dict for report.json, and the same figures as a table of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segearth_r2_jax.evaluation.metrics import OFFICIAL, ORIGINAL, Score

RULE_WORDS = {
    ORIGINAL: "masks compared on the pixels of the image",
    OFFICIAL: "as the official eval.py: on the model's square frame, ground truth stretched to it (for published numbers only)",
}
PAIRING = "pairing by order; missing masks repeat the last one (none at all: empty masks); surplus masks are ignored; empty union = 1"
BASELINE = "whole image"
ALL = "all"
ALL_WORDS = "every record of every file: a question that stands in several files counts in each"


def make_report(
    benchmark: str, rule: str, files: Mapping[str, Score], baselines: Mapping[str, Score], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        files: the score of each file of the benchmark; `baselines` the same of the answer "every pixel".
        about: what else identifies the evaluation (checkpoint, data, limits, ...).
    """
    return {
        "benchmark": benchmark,
        "rule": rule,
        "rule_in_words": f"{RULE_WORDS[rule]}; {PAIRING}",
        "decoding": "greedy",
        **about,
        "files": {name: score.to_dict() for name, score in files.items()},
        ALL: sum(files.values(), Score()).to_dict(),
        "all_in_words": ALL_WORDS,
        "baselines": {
            BASELINE: {
                "files": {name: score.to_dict() for name, score in baselines.items()},
                ALL: sum(baselines.values(), Score()).to_dict(),
            }
        },
    }


def format_table(report: Mapping[str, Any]) -> str:
    """The figures of a report in aligned columns: a row per file, one for all, one for the baseline."""
    rows = [("", "records", "masks", "gIoU", "cIoU", "empty answers")]
    rows += [_row(name, figures) for name, figures in report["files"].items()]
    rows.append(_row(ALL, report[ALL]))
    rows.append(_row(f"({BASELINE})", report["baselines"][BASELINE][ALL]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, (name, *cells) in enumerate(rows):
        lines.append("  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))]))
        if number in (0, len(rows) - 3):
            lines.append("-" * len(lines[0]))
    return "\n".join([*lines, "", f"rule {report['rule']}: {report['rule_in_words']}", f"{ALL}: {report['all_in_words']}"])


def _row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    empty = "-" if figures["empty_answers"] is None else f"{100 * figures['empty_answers']:.1f} %"
    return name, str(figures["records"]), str(figures["masks"]), percent(figures["gIoU"]), percent(figures["cIoU"]), empty
