"""Static HTML: elements whose text is escaped unless it is markup already, and the frame of a page that needs nothing but itself.

A page is one file. Style and scripts stand in it, pictures too (or lie beside it), and its content security policy lets a browser run
only the scripts that were put there: words of a data set stay words, whatever they contain.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.atomic import write_bytes
from segearth_r2_jax.raster.overlay import COLOURS, ink

_VOID = frozenset(("br", "hr", "img", "input", "link", "meta"))


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One element. `children` that are no Markup are escaped, None is left out.

    An attribute's name loses a trailing underscore, and its others become hyphens (`class_`, `data_mask`); True gives an attribute
    without a value, None and False none at all.
    """
    opening = "".join(f" {_attribute(name, value)}" for name, value in attributes.items() if value is not None and value is not False)
    if tag in _VOID:
        return Markup(f"<{tag}{opening}>")
    return Markup(f"<{tag}{opening}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """Children one after the other: Markup as it is, anything else as escaped text, None not at all."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children if child is not None))


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    return name if value is True else f'{name}="{html.escape(str(value))}"'


def section(title: str, *children: object, note: str | None = None) -> Markup:
    """A headed part of a page; `note` says in a line what is seen."""
    return element("section", element("h2", title), None if note is None else element("p", note, class_="note"), *children)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()) -> Markup:
    """A table whose columns `numbers` are aligned as numbers; it scrolls sideways where the screen is narrow."""

    def line(tag: str, cells: Sequence[object]) -> Markup:
        return element("tr", *(element(tag, cell, class_=column in numbers and "number") for column, cell in enumerate(cells)))

    body = element("tbody", *(line("td", row) for row in rows))
    return element("div", element("table", element("thead", line("th", head)), body), class_="scroll", tabindex=0)


def totals(values: Sequence[tuple[str, object]]) -> Markup:
    """Figures that are seen first: (what, how many)."""
    return element("dl", *(element("div", element("dt", what), element("dd", figure(value))) for what, value in values), class_="totals")


def figure(value: object) -> object:
    """Whole numbers with a comma between thousands, anything else as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def page(title: str, *body: object, subtitle: str | None = None, scripts: Sequence[str] = (), data: Any = None) -> str:
    """A whole page.

    Args:
      subtitle: a line under the title.
      scripts: names of scripts of this package, `NAME.js`, which are put into the page, one after the other.
      data: what the scripts find as JSON in the element with the id "data".
    """
    source = "\n".join(asset(script) for script in scripts)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(_colours() + asset("style.css"))),
    )
    heading = element("header", element("h1", title), None if subtitle is None else element("p", subtitle, class_="subtitle"))
    json_element = None if data is None else element("script", Markup(_json(data)), type="application/json", id="data")
    script = element("script", Markup(source)) if source else None
    return (
        "<!doctype html>\n"
        + element("html", head, element("body", heading, element("main", *body), json_element, script), lang="en")
        + "\n"
    )


def asset(name: str) -> str:
    """A file of this package as text."""
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def write_page(path: Path, content: str) -> None:
    """Writes a page under a temporary name and renames it; UserError naming it if that cannot be done."""
    # File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    write_bytes(path, content.encode("utf-8", "xmlcharrefreplace"))


def _json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _colours() -> str:
    """The masks' colours and the ink on them, as CSS: classes m0, m1 ..."""
    return "".join(
        f".m{number}{{--mask:rgb{colour};--on-mask:rgb{ink(number)}}}\n".replace(", ", ",") for number, colour in enumerate(COLOURS)
    )
