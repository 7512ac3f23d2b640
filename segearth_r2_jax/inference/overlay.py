"""The picture that shows an answer: masks over the image, each paired with its words, and the question and answer below.

A mask has a colour and a number. The number stands on the mask, in the legend and in the answer in place of its [SEG], so the
pairing does not hang on colour alone; the colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from segearth_r2_jax.inference.segment import Segmentation, Target
from segearth_r2_jax.inputs.tokenizer import SEG_TOKEN

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))

# The longest side of the shown image: small images are enlarged and large ones shrunk until text beside them can be read.
SHOWN_SIDES = (768, 1600)
# The text needs this much room, however narrow the image is.
MINIMAL_WIDTH = 640

_PAPER, _INK, _FAINT = (250, 250, 248), (25, 25, 25), (110, 110, 110)
_FILL = 0.42
# Fonts with more scripts than Pillow's own, by the names under which systems have them.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf")

_Word = tuple[str, int | None]  # text, and the number of the target if the word is the mark of one


def draw_overlay(image: np.ndarray, instruction: str, segmentation: Segmentation) -> Image.Image:
    """The picture of an answer about `image`, uint8 [h, w, 3]; RGB, between 640 and about 1700 pixels wide."""
    shown = _shown(image)
    unit = max(15, min(28, round(max(shown.width, MINIMAL_WIDTH) / 52)))
    picture = _with_masks(shown, segmentation.targets, unit)
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


def _with_masks(shown: Image.Image, targets: Sequence[Target], unit: int) -> Image.Image:
    line = max(2, unit // 8)
    masks = [_shown_mask(target.mask, shown.size) for target in targets]
    shown = _tinted(shown, masks)
    for number, mask in enumerate(masks):
        # A pixel whose neighbourhood is not all mask, or not all background, is at the edge. A blur finds it faster than rank filters.
        near = mask.filter(ImageFilter.BoxBlur(line))
        outline = ImageChops.multiply(mask, near.point(lambda v: 255 * (v < 255)))
        # A dark rim outside the coloured line keeps it visible on a background of its own colour.
        rim = ImageChops.subtract(near.point(lambda v: 255 * (v > 0)), mask)
        shown.paste((0, 0, 0), mask=rim.point(lambda v: v * 3 // 4))
        shown.paste(_colour(number), mask=outline)
    draw = ImageDraw.Draw(shown)
    taken: list[tuple[int, int]] = []
    for number, mask in enumerate(masks):
        place = _place(np.asarray(mask) > 0, taken, unit)
        if place is not None:
            taken.append(place)
            _badge(draw, place, number, unit, shown.size)
    return shown


def _tinted(shown: Image.Image, masks: Sequence[Image.Image]) -> Image.Image:
    """The image under a veil of the masks' colours, mixed where masks overlap, so that the image shows through any number of them."""
    if not masks:
        return shown
    colours = np.zeros((shown.height, shown.width, 3), np.float32)
    covers = np.zeros((shown.height, shown.width, 1), np.float32)
    for number, mask in enumerate(masks):
        inside = np.asarray(mask)[..., None] > 0
        colours += inside * np.float32(_colour(number))
        covers += inside
    pixels = np.asarray(shown).astype(np.float32)
    veiled = pixels * (1 - _FILL) + colours / np.maximum(covers, 1) * _FILL
    return Image.fromarray(np.where(covers > 0, veiled, pixels).astype(np.uint8))


def _shown_mask(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The mask at the shown size, "L", 0 or 255; a target too small for one shown pixel keeps one."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    if size[0] >= mask.shape[1]:
        return picture.resize(size, Image.Resampling.NEAREST)
    return picture.resize(size, Image.Resampling.BOX).point(lambda v: 255 * (v > 0))


def _place(mask: np.ndarray, taken: Sequence[tuple[int, int]], unit: int) -> tuple[int, int] | None:
    """A point (x, y) deep inside the mask for its number, away from the numbers that stand already."""
    ys, xs = np.nonzero(mask)
    if not xs.size:
        return None
    step = max(1, xs.size // 4000)
    xs, ys = xs[::step], ys[::step]
    depth = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(2 * unit))
    value = np.asarray(depth).astype(np.float64)[ys, xs] - 0.02 * np.hypot(xs - xs.mean(), ys - ys.mean())
    for x, y in taken:
        value -= 300 * (np.hypot(xs - x, ys - y) < 2 * unit)
    best = int(value.argmax())
    return int(xs[best]), int(ys[best])


def _badge(draw: ImageDraw.ImageDraw, centre: tuple[float, float], number: int, unit: int, size: tuple[int, int] | None = None) -> None:
    """The number of a target in its colour; kept inside a picture of `size` if one is given."""
    half_height, text = unit * 0.72, str(number + 1)
    half_width = max(half_height, unit * 0.36 * len(text) + unit * 0.3)
    x, y = centre
    if size is not None:
        x = min(max(x, half_width + 1), max(size[0] - half_width - 2, half_width + 1))
        y = min(max(y, half_height + 1), max(size[1] - half_height - 2, half_height + 1))
    box = (x - half_width, y - half_height, x + half_width, y + half_height)
    draw.rounded_rectangle(box, half_height, fill=_colour(number), outline=(0, 0, 0), width=max(1, unit // 14))
    luminance = np.dot(_colour(number), (0.299, 0.587, 0.114))
    draw.text((x, y), text, font=_font("0", unit), fill=(0, 0, 0) if luminance > 120 else (255, 255, 255), anchor="mm")


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
                _badge(draw, (x + unit * 0.9, y + height_of_line / 2), number, unit)
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


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


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
