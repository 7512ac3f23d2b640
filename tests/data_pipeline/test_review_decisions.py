"""`review.json`: what is rejected is left out and said, and a damaged file decides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.annotation import Annotation, Rejection
from data_pipeline.review_decisions import REASON, Decision, apply_decisions, load_decisions
from segearth_r2_jax.errors import UserError


def _write(path: Path, decisions, **changes) -> Path:
    path.write_text(json.dumps({"format": "segearth-r2-review", "version": 1, "decisions": decisions} | changes), encoding="utf-8")
    return path


def _row(record_id: str) -> Annotation:
    return Annotation(f"a.json: row {record_id!r}", record_id, "a.json", "a.png", Path("a.png"), "the lake", "[SEG]", ())


def test_rejected_rows_become_rejections_with_their_note(tmp_path):
    decided = {
        "1": {"decision": "accept", "note": "fine"},
        "2": {"decision": "reject", "note": "too wide"},
        "3": {"decision": "reject"},
    }
    decisions = load_decisions(_write(tmp_path / "review.json", decided))
    assert decisions == {"1": Decision(True, "fine"), "2": Decision(False, "too wide"), "3": Decision(False)}
    damaged = Rejection("a.json: row '9'", "has no mask")
    rows = [_row("1"), _row("2"), damaged, _row("3"), _row("undecided")]
    kept = list(apply_decisions(rows, decisions))
    assert [row.record_id for row in kept if isinstance(row, Annotation)] == ["1", "undecided"]
    assert [str(row) for row in kept if isinstance(row, Rejection)] == [
        f"a.json: row '2': {REASON}: too wide",
        "a.json: row '9': has no mask",
        f"a.json: row '3': {REASON}",
    ]


def test_nothing_decided_changes_nothing():
    rows = [_row("1"), _row("2")]
    assert list(apply_decisions(rows, {})) == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not a review file"),
        ("[]", "format"),
        ('{"format": "other", "version": 1, "decisions": {}}', "format"),
        ('{"format": "segearth-r2-review", "version": 2, "decisions": {}}', "version 2"),
        ('{"format": "segearth-r2-review", "version": true, "decisions": {}}', "version True"),
        ('{"format": "segearth-r2-review", "version": 1}', "decisions"),
        ('{"format": "segearth-r2-review", "version": 1, "decisions": {"7": "reject"}}', "row '7'"),
        ('{"format": "segearth-r2-review", "version": 1, "decisions": {"7": {"decision": "maybe"}}}', "row '7': the decision"),
        ('{"format": "segearth-r2-review", "version": 1, "decisions": {"7": {"decision": "accept", "note": 3}}}', "row '7': the note"),
        (
            '{"format": "segearth-r2-review", "version": 1, "decisions": {"7": {"decision": "accept"}, "7": {"decision": "reject"}}}',
            "'7' stands there twice",
        ),
        ("[" * 100000, "not a review file"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(content, said, tmp_path):
    path = tmp_path / "review.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_decisions(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_decisions(tmp_path / "review.json")
