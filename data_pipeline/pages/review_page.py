"""The page on which a person accepts or rejects rows; `review.js` fills it from the rows that stand in it as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.annotation import Rejection
from data_pipeline.pages.markup import Markup, element, join, page
from data_pipeline.pages.pictures import Picture
from data_pipeline.pages.rejections import rejections_section
from data_pipeline.pages.samples import answer_pieces, known_tags
from data_pipeline.review_decisions import FORMAT, VERSION, Decision
from data_pipeline.schema import Record
from segearth_r2_jax.raster.overlay import COLOURS

_KEYS = (
    ("A", "accept, and on to the next"),
    ("R", "reject, and on to the next"),
    ("U", "take the decision back"),
    ("N", "write a note (Escape leaves it)"),
    ("M", "hide or show the masks"),
    ("← →", "the row before or after"),
)


def review_row(record: Record, picture: Picture, image: str, layers: Sequence[str]) -> dict[str, Any]:
    """A row as the page's script expects it; `image` and `layers` are the addresses of the picture's files."""
    return {
        "id": record.record_id,
        "instruction": record.instruction,
        "answer": [list(piece) for piece in answer_pieces(record.answer or "")],
        "tags": known_tags(record),
        "origin": f"{record.source} · {record.image_name} · {record.width} × {record.height}",
        "image": image,
        "size": [picture.jpeg.width, picture.jpeg.height],
        "layers": [[path, list(layer.numbers)] for path, layer in zip(layers, picture.layers, strict=True)],
        "places": [None if place is None else [round(share, 4) for share in place] for place in picture.places],
    }


def review_page(
    title: str, subtitle: str, rows: Sequence[Mapping[str, Any]], decisions: Mapping[str, Decision], rejected: Sequence[Rejection] = ()
) -> str:
    """The whole page. `decisions` are those made earlier: the page starts with them. `rejected` rows are only listed."""
    data = {
        "format": FORMAT,
        "version": VERSION,
        # Browsers may keep one store for all pages on a disk: a data set's decisions are kept under a name of its own.
        "key": f"{FORMAT}:{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:20]}",
        "colours": len(COLOURS),
        "rows": rows,
        "decisions": {
            row_id: {"decision": "accept" if decision.accepted else "reject", "note": decision.note}
            for row_id, decision in decisions.items()
        },
    }
    needs = "This page needs JavaScript to show the rows and to keep decisions. It sends nothing anywhere."
    return page(
        title,
        element("noscript", element("p", needs)),
        _toolbar(),
        element("p", class_="message", id="message", role="status"),
        element("div", _card(), class_="review", id="review"),
        element("nav", element("div", class_="pages", id="pages"), element("div", class_="strip", id="strip"), aria_label="Rows"),
        _help(),
        rejections_section(rejected) if rejected else None,
        subtitle=subtitle,
        scripts=("masks.js", "review.js"),
        data=data,
    )


def _toolbar() -> Markup:
    choices = [
        element("option", words, value=value)
        for value, words in (("all", "all rows"), ("undecided", "undecided"), ("accept", "accepted"), ("reject", "rejected"))
    ]
    return element(
        "div",
        element("progress", id="progress", value=0, max=1, aria_label="Decided"),
        element("output", id="count"),
        element("label", "show ", element("select", *choices, id="filter")),
        element("button", "masks ", element("kbd", "M"), type="button", aria_pressed="true", id="masks"),
        element("label", "Import", element("input", type="file", accept=".json,application/json", id="import"), class_="button"),
        element("button", "Download review.json", type="button", id="download", class_="main"),
        class_="tools",
        role="toolbar",
        aria_label="Decisions",
    )


def _card() -> Markup:
    def button(id_: str, words: str, key: str, **attributes: object) -> Markup:
        return element("button", words, " ", element("kbd", key), type="button", id=id_, **attributes)

    return join(
        element("div", element("div", class_="stack", id="stack"), class_="picture"),
        element(
            "article",
            element("p", id="place", class_="note", aria_live="polite"),
            element("p", id="instruction", class_="instruction"),
            element("p", id="answer", class_="answer"),
            element("ul", id="tags", class_="chips"),
            element(
                "div",
                button("accept", "Accept", "A", aria_pressed="false"),
                button("reject", "Reject", "R", aria_pressed="false"),
                class_="decide",
            ),
            element("label", "Note ", element("kbd", "N"), element("textarea", id="note", rows=2), class_="noted"),
            element("div", button("previous", "Previous", "←"), button("next", "Next", "→"), class_="steps"),
            element("p", id="origin", class_="origin"),
            class_="facts",
        ),
    )


def _help() -> Markup:
    keys = [element("div", element("dt", element("kbd", key)), element("dd", words)) for key, words in _KEYS]
    kept = (
        "Decisions stay in this browser until they are downloaded. Put review.json into the data set's folder: "
        "build_shards leaves rejected rows out and lists them in its report."
    )
    return element("details", element("summary", "Keys, and where decisions go"), element("dl", *keys, class_="keys"), element("p", kept))
