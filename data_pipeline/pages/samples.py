"""One record on a page: the image under its masks, the instruction, the answer whose phrases have their masks' colours, the tags."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from data_pipeline.pages.markup import Markup, element, join
from data_pipeline.pages.pictures import Picture, data_uri
from data_pipeline.schema import DIMENSIONS, Record
from segearth_r2_jax.inputs.tokenizer import SEG_TOKEN
from segearth_r2_jax.raster.overlay import COLOURS

_TAGS = re.compile(r"</?p>")
_LAST_PHRASE = re.compile(r"(.*)<p>(.*?)</p>\s*$", re.DOTALL)


class Piece(NamedTuple):
    """A stretch of an answer; `mask` is the number of the mask, from 0, whose phrase it is, None elsewhere."""

    text: str
    mask: int | None


def answer_pieces(answer: str) -> list[Piece]:
    """An answer in pieces, without its marks: each [SEG] gives a piece with the phrase `<p>...</p>` before it, empty if there is none."""
    pieces = []
    *before, rest = answer.split(SEG_TOKEN)
    for number, text in enumerate(before):
        phrase = _LAST_PHRASE.match(text)
        if phrase:
            text = phrase[1]
        pieces += [Piece(_TAGS.sub("", text), None), Piece(_TAGS.sub("", phrase[2]) if phrase else "", number)]
    pieces.append(Piece(_TAGS.sub("", rest), None))
    return [piece for piece in pieces if piece.text or piece.mask is not None]


def known_tags(record: Record) -> dict[str, str]:
    """The tags that the record has, the category last."""
    return {name: value for name, value in dataclasses.asdict(record.tags).items() if value is not None}


def sample_card(record: Record, picture: Picture) -> Markup:
    """The record as an article that the page's filter and highlighting know."""
    layers = [
        element(
            "img",
            src=data_uri(layer.png, "png"),
            alt="",
            class_="layer",
            data_masks=" ".join(str(number) for number in layer.numbers),
        )
        for layer in picture.layers
    ]
    alt = f"{record.image_name}, {len(record.masks or ())} masks"
    image = element("img", src=data_uri(picture.jpeg.content, "jpeg"), alt=alt, width=picture.jpeg.width, height=picture.jpeg.height)
    badges = [
        element("span", number + 1, class_=f"badge m{number % len(COLOURS)}", style=f"--x:{100 * place[0]:.1f}%;--y:{100 * place[1]:.1f}%")
        for number, place in enumerate(picture.places)
        if place is not None
    ]
    box = None if record.box is None else element("span", class_="box", style=_box_style(record))
    # In a square frame, a tall image is as much narrower as it is taller.
    width = min(100, 100 * picture.jpeg.width / picture.jpeg.height)
    stack = element("div", image, *layers, box, *badges, class_="stack", style=f"width:{width:.2f}%")
    tags = known_tags(record)
    chips = [element("li", value, title=name) for name, value in tags.items()]
    return element(
        "article",
        element("div", stack, class_="picture"),
        element("p", record.instruction, class_="instruction"),
        _answer(record),
        element("ul", *chips, class_="chips") if chips else None,
        element("p", f"{record.record_id} · {record.source} · {record.image_name} · {record.width} × {record.height}", class_="origin"),
        class_="sample",
        data_id=record.record_id,
        **{f"data_{name}": tags.get(name, "") for name in DIMENSIONS},
    )


def _box_style(record: Record) -> str:
    x1, y1, x2, y2 = record.box
    shares = {"left": x1 / record.width, "top": y1 / record.height}
    shares |= {"width": (x2 - x1) / record.width, "height": (y2 - y1) / record.height}
    return ";".join(f"{name}:{100 * share:.2f}%" for name, share in shares.items())


def _answer(record: Record) -> Markup:
    if record.answer is None:
        return element("p", "The answer is withheld.", class_="answer note")
    words = []
    for piece in answer_pieces(record.answer):
        if piece.mask is None:
            words.append(piece.text)
            continue
        badge = element("span", piece.mask + 1, class_="badge")
        words.append(element("mark", piece.text, badge, class_=f"m{piece.mask % len(COLOURS)}", data_mask=piece.mask, tabindex=0))
    without = element("span", " No mask.", class_="note") if record.masks == () else None
    return element("p", join(*words), without, class_="answer")
