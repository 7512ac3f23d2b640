"""Decisions of a person about the rows of a data set: the file `review.json` in its folder, and what becomes of the rows.

    {"format": "segearth-r2-review", "version": 1, "decisions": {"<row id>": {"decision": "accept", "note": ""}, ...}}

A rejected row is left out and reported with its note; a row that was accepted, or about which nothing was decided, stays.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.annotation import Annotation, Rejection
from segearth_r2_jax.errors import UserError

FILE_NAME = "review.json"
FORMAT, VERSION = "segearth-r2-review", 1
REASON = "rejected in review"
_VERDICTS = ("accept", "reject")


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided about one row, and why."""

    accepted: bool
    note: str = ""


def load_decisions(path: str | os.PathLike[str]) -> dict[str, Decision]:
    """The decisions of a review file by row id, in the file's order.

    Raises UserError naming the file, and the row where one is wrong; a file that is only partly right decides nothing.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a review file ({error!s:.160}); export it anew from the review page") from None
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise UserError(f'{path}: not a review file; expected an object with "format": "{FORMAT}"')
    if content.get("version") != VERSION or isinstance(content["version"], bool):
        raise UserError(f"{path}: version {content.get('version')!r:.40} of the review file is not known; expected {VERSION}")
    rows = content.get("decisions")
    if not isinstance(rows, Mapping):
        raise UserError(f'{path}: expected "decisions", an object of row ids')
    return {row_id: _decision(value, f"{path}: row {row_id!r}") for row_id, value in rows.items()}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key stand twice; which of two decisions was meant cannot be known."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _decision(value: Any, name: str) -> Decision:
    if not isinstance(value, Mapping):
        raise UserError(f'{name}: expected {{"decision": "accept" or "reject", "note": "..."}}')
    verdict, note = value.get("decision"), value.get("note", "")
    if verdict not in _VERDICTS:
        raise UserError(f"{name}: the decision must be accept or reject, it is {verdict!r:.40}")
    if not isinstance(note, str):
        raise UserError(f"{name}: the note must be a text, it is {type(note).__name__}")
    return Decision(verdict == "accept", note)


def apply_decisions(rows: Iterable[Annotation | Rejection], decisions: Mapping[str, Decision]) -> Iterator[Annotation | Rejection]:
    """The rows in their order, each one that was rejected in review as a Rejection that says so; `decisions` may be empty."""
    for row in rows:
        decision = decisions.get(row.record_id) if isinstance(row, Annotation) else None
        if decision is not None and not decision.accepted:
            yield Rejection(row.name, f"{REASON}: {decision.note}" if decision.note else REASON)
        else:
            yield row
