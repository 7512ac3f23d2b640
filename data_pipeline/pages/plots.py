"""Bar charts and histograms as inline SVG, drawn in the page's own colours. Every bar says its value when pointed at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from data_pipeline.pages.markup import Markup, element

# Units of the drawing; at full size one is about a pixel.
_WIDTH = 400
_LABELS, _VALUES, _LINE = 118, 92, 24
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 48, 24, 12, 46, 210


def bar_chart(bars: Sequence[tuple[str, int]], what: str, *, limit: int = 14) -> Markup:
    """Horizontal bars (label, count >= 0) in the given order; after `limit` of them the rest becomes one.

    `what` says in words what is counted. Shares are of the sum of all bars.
    """
    bars = list(bars)
    if len(bars) > limit:
        rest = bars[limit - 1 :]
        bars = [*bars[: limit - 1], (f"{len(rest)} others", sum(count for _, count in rest))]
    total = sum(count for _, count in bars)
    longest = max((count for _, count in bars), default=0)
    room = _WIDTH - _LABELS - _VALUES
    lines = []
    for number, (label, count) in enumerate(bars):
        middle = number * _LINE + _LINE / 2 + 4
        share = count / total if total else 0.0
        lines.append(
            element(
                "g",
                element("title", f"{label}: {count:,} ({_percent(share)})"),
                element("text", _shortened(label, 17), x=_LABELS - 8, y=_n(middle), class_="label end"),
                element(
                    "rect",
                    x=_LABELS,
                    y=_n(middle - 8),
                    width=_n(max(room * count / longest if longest else 0, 1.5 if count else 0)),
                    height=16,
                    rx=2,
                    class_="bar",
                ),
                element(
                    "text", f"{count:,} · {_percent(share)}", x=_n(_LABELS + (room * count / longest if longest else 0) + 6), y=_n(middle)
                ),
            )
        )
    axis = element("line", x1=_LABELS, x2=_LABELS, y1=2, y2=len(bars) * _LINE + 6, class_="axis")
    return _drawing(len(bars) * _LINE + 8, f"{what}: " + ", ".join(f"{label} {count}" for label, count in bars), *lines, axis)


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    what: str,
    *,
    log: bool = False,
    form: Callable[[float], str] = lambda value: f"{value:g}",
) -> Markup:
    """Bars over the bins between `edges`, one more than `counts`.

    Args:
      what: the quantity and its unit: the x axis's name.
      log: a logarithmic x axis (all edges above zero).
      form: how a value of the x axis is written.
    """
    if len(edges) != len(counts) + 1 or not counts:
        raise ValueError(f"{len(edges)} edges and {len(counts)} counts; expected at least one count and one more edge")
    scale = math.log10 if log else float
    low, high = scale(edges[0]), scale(edges[-1])
    top = _nice_ceiling(max(counts))
    bottom = _HEIGHT - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (scale(value) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(count: float) -> float:
        return bottom - count / top * (bottom - _TOP)

    parts = []
    for tick in _whole_ticks(top):
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_n(y(tick)), y2=_n(y(tick)), class_="grid"))
        parts.append(element("text", f"{tick:,}", x=_LEFT - 6, y=_n(y(tick)), class_="end"))
    for (start, end), count in zip(itertools.pairwise(edges), counts, strict=True):
        left, right = x(start), x(end)
        title = element("title", f"{form(start)} to {form(end)}: {count:,}")
        height = max(bottom - y(count), 1.5 if count else 0)
        parts.append(
            element(
                "rect",
                title,
                x=_n(left + 0.5),
                y=_n(bottom - height),
                width=_n(max(right - left - 1, 0.5)),
                height=_n(height),
                class_="bar",
            )
        )
    parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=bottom, y2=bottom, class_="axis"))
    for value in _log_ticks(edges[0], edges[-1]) if log else _linear_ticks(edges[0], edges[-1]):
        parts.append(element("line", x1=_n(x(value)), x2=_n(x(value)), y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(element("text", form(value), x=_n(x(value)), y=bottom + 14, class_="middle"))
    parts.append(element("text", what, x=_n((_LEFT + _WIDTH - _RIGHT) / 2), y=_HEIGHT - 10, class_="middle name"))
    bins = zip(itertools.pairwise(edges), counts, strict=True)
    return _drawing(_HEIGHT, f"{what}: " + ", ".join(f"{form(a)} to {form(b)} {n}" for (a, b), n in bins if n), *parts)


def _drawing(height: float, label: str, *parts: Markup) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_n(height)}", class_="plot", role="img", aria_label=label)


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def _shortened(label: str, length: int) -> str:
    label = label or "(no name)"
    return label if len(label) <= length else label[: length - 1].rstrip() + "…"


def _nice_ceiling(count: int) -> int:
    """The smallest of 1, 2, 3, 4, 5, 6, 8, 10, 20, 30 ... that is not below `count`."""
    for power in itertools.count():
        for step in (1, 2, 3, 4, 5, 6, 8):
            if step * 10**power >= count:
                return step * 10**power
    raise AssertionError


def _whole_ticks(top: int) -> list[int]:
    parts = next((parts for parts in (4, 5, 3) if top % parts == 0), top)
    return [top * part // parts for part in range(parts + 1)]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers from `low` to `high`."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**exponent for exponent in exponents]


def _n(number: float) -> str:
    """A coordinate in as few characters as a tenth of a unit needs."""
    return f"{number:.1f}".removesuffix(".0")
