"""Cost against work: a fitted exponent, and a picture (SVG) of the points and the fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 330, 250, 58, 44, 34, 14


class Curve(NamedTuple):
    """What was measured: x, y (positive) of each point, and the fit y = factor * x ** exponent."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    exponent: float
    factor: float


def fitted(title: str, x_label: str, y_label: str, x: Sequence[float], y: Sequence[float]) -> Curve:
    """The least-squares line through the logarithms."""
    exponent, constant = np.polyfit(np.log(x), np.log(y), 1)
    return Curve(title, x_label, y_label, list(x), list(y), round(float(exponent), 3), float(np.exp(constant)))


def write_picture(path: Path, curves: Sequence[Curve]) -> None:
    """The curves side by side, both axes logarithmic."""
    panels = [f'<g transform="translate({i * _WIDTH} 0)">{_panel(curve)}</g>' for i, curve in enumerate(curves)]
    width = _WIDTH * len(curves)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" viewBox="0 0 {width} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(panels) + "\n</svg>\n",
        encoding="utf-8",
    )


def _panel(curve: Curve) -> str:
    low, high = _span(curve.x), _span([*curve.y, *(curve.factor * x**curve.exponent for x in curve.x)])
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        along = (math.log(x) - math.log(low[0])) / (math.log(low[1]) - math.log(low[0]))
        up = (math.log(y) - math.log(high[0])) / (math.log(high[1]) - math.log(high[0]))
        return round(_LEFT + along * (right - _LEFT), 1), round(bottom - up * (bottom - _TOP), 1)

    parts = [
        f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(curve.title)}</text>',
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#444"/>',
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(curve.x_label)}</text>',
        f'<text transform="translate(13 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">{escape(curve.y_label)}</text>',
        f'<text x="{right}" y="{bottom - 8}" text-anchor="end" fill="#1d5fa8">exponent {curve.exponent:.2f}</text>',
    ]
    for x in curve.x:
        parts.append(f'<text x="{place(x, high[0])[0]}" y="{bottom + 14}" text-anchor="middle">{x:g}</text>')
    for y in np.geomspace(*high, 4):
        parts.append(f'<text x="{_LEFT - 4}" y="{place(low[0], y)[1] + 4}" text-anchor="end">{y:.3g}</text>')
    ends = [place(x, curve.factor * x**curve.exponent) for x in (min(curve.x), max(curve.x))]
    (x1, y1), (x2, y2) = ends
    parts.append(f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#1d5fa8" stroke-dasharray="4 3"/>')
    for point in zip(curve.x, curve.y, strict=True):
        parts.append('<circle cx="{}" cy="{}" r="3.5" fill="#1d5fa8"/>'.format(*place(*point)))
    return "".join(parts)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """A little more than from the smallest to the largest."""
    return min(values) / 1.15, max(values) * 1.15
