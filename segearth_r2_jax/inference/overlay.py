"""The picture that shows an answer: masks over the image, each paired with its words, and the question and answer below.

A mask has a colour and a number (`raster.overlay`). The number stands on the mask, in the legend and in the answer in place of its
[SEG], so the pairing does not hang on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segearth_r2_jax.inference.segment import Segmentation, Target
from segearth_r2_jax.inputs.tokenizer import SEG_TOKEN
from segearth_r2_jax.raster.overlay import draw_badge, paint_masks

# The longest side of the shown image: small images are enlarged and large ones shrunk until text beside them can be read.
SHOWN_SIDES = (768, 1600)
# The text needs this much room, however narrow the image is.
MINIMAL_WIDTH = 640

_PAPER, _INK, _FAINT = (250, 250, 248), (25, 25, 25), (110, 110, 110)
# Fonts with more scripts than Pillow's own, by the names under which systems have them.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf")

_Word = tuple[str, int | None]  # text, and the number of the target if the word is the mark of one


def draw_overlay(image: np.ndarray, instruction: str, segmentation: Segmentation) -> Image.Image:
    """The picture of an answer about `image`, uint8 [h, w, 3]; RGB, between 640 and about 1700 pixels wide."""
    shown = _shown(image)
    unit = max(15, min(28, round(max(shown.width, MINIMAL_WIDTH) / 52)))
    picture = paint_masks(shown, [target.mask for target in segmentation.targets], unit)
    width = max(picture.width, MINIMAL_WIDTH)
    panel = _panel(width, unit, instruction, segmentation, image.shape[0] * image.shape[1])
    page = Image.new("RGB", (width, picture.height + panel.height), _PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    page.paste(panel, (0, picture.height))
    return page


def _shown(image: np.ndarray) -> Image.Image:
    low, high = SHOWN_SIDES
    longest = max(image.shape[:2])
    scale = low / longest if longest < low else min(1.0, high / longest)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    # Enlarged pixels stay visible as what they are.
    method = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    return Image.fromarray(image).resize(size, method, reducing_gap=3.0)


def _panel(width: int, unit: int, instruction: str, segmentation: Segmentation, pixels: int) -> Image.Image:
    """Legend, question and answer on paper of `width`."""
    margin, height_of_line = round(unit * 0.9), round(unit * 1.7)
    room = width - 2 * margin
    lines: list[tuple[str, Sequence[_Word]]] = []  # kind, words
    for number, target in enumerate(segmentation.targets):
        lines.append(("legend", [("", number), *_split(_legend(target, pixels))]))
    if not segmentation.targets:
        lines.append(("note", _split("The answer has no mask.")))
    lines.append(("gap", []))
    lines.append(("text", [("Question:", None), *_split(instruction)]))
    lines.append(("text", [("Answer:", None), *_answer_words(segmentation, unit)]))
    wrapped = [(kind, row, first) for kind, words in lines for first, row in _wrap(words, room, unit, kind == "legend")]
    tall = sum(height_of_line // 2 if kind == "gap" else height_of_line for kind, _, _ in wrapped)
    panel = Image.new("RGB", (width, tall + 2 * margin), _PAPER)
    draw = ImageDraw.Draw(panel)
    y = margin
    for kind, row, first in wrapped:
        if kind == "gap":
            y += height_of_line // 2
            continue
        x = float(margin) if first or kind != "legend" else margin + _indent(unit)
        for position, (text, number) in enumerate(row):
            if number is not None:
                draw_badge(draw, (x + unit * 0.9, y + height_of_line / 2), number, unit)
            label = kind == "text" and first and position == 0
            fill = _FAINT if label or kind == "note" else _INK
            draw.text((x, y + height_of_line / 2), text, font=_font(text, unit), fill=fill, anchor="lm")
            x += _width((text, number), unit) + _space(unit)
        y += height_of_line
    return panel


def _legend(target: Target, pixels: int) -> str:
    if target.box is None:
        return f"{target.phrase} · nothing found (empty mask)"
    share = 100 * target.area / pixels
    amount = f"{share:.1f} %" if share >= 0.1 else "under 0.1 %"
    return f"{target.phrase} · {target.area:,} px ({amount}) · score {target.score:.2f}"


def _answer_words(segmentation: Segmentation, unit: int) -> list[_Word]:
    """The answer with the number of a target in place of each of its [SEG]."""
    words: list[_Word] = []
    pieces = segmentation.answer.split(SEG_TOKEN)
    for number, piece in enumerate(pieces):
        words += _split(piece.replace("<p>", "").replace("</p>", ""))
        if number < len(pieces) - 1:
            words.append(("", number) if number < len(segmentation.targets) else (SEG_TOKEN, None))
    if not segmentation.finished:
        words.append(("… (cut at the length limit)", None))
    return words or [("(no words)", None)]


def _split(text: str) -> list[_Word]:
    """Words; those too long for any line, and those of scripts without spaces, in pieces."""
    longest = 24
    return [(word[i : i + longest], None) for word in text.split() for i in range(0, len(word), longest)]


def _wrap(words: Sequence[_Word], room: int, unit: int, indented: bool) -> Iterator[tuple[bool, list[_Word]]]:
    """(is the first line, its words) of each line that `words` fill in a column of `room` pixels."""
    row: list[_Word] = []
    used, first = 0.0, True
    for word in words:
        needed = _width(word, unit)
        if row and used + needed > room - (_indent(unit) if indented and not first else 0):
            yield first, row
            row, used, first = [], 0.0, False
        row.append(word)
        used += needed + _space(unit)
    yield first, row


def _width(word: _Word, unit: int) -> float:
    return unit * 1.8 if word[1] is not None else _font(word[0], unit).getlength(word[0])


def _space(unit: int) -> float:
    return unit * 0.32


def _indent(unit: int) -> float:
    return unit * 1.8 + _space(unit)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own font has the Latin letters and the punctuation used here.
    if all(ord(c) < 0x250 or 0x2010 <= ord(c) <= 0x2030 for c in text):
        return ImageFont.load_default(size)
    for name in _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
