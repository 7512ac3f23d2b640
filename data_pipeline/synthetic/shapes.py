"""Outlines in metres: turned rectangles, blobs, ribbons along a curve."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Rect:
    """An upright rectangle of the layout."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def centre(self) -> Point:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def radius(self) -> float:
        """Half of the diagonal."""
        return math.hypot(self.width, self.height) / 2

    def corners(self) -> np.ndarray:
        """[4, 2], clockwise on the picture."""
        return np.array([[self.x0, self.y0], [self.x1, self.y0], [self.x1, self.y1], [self.x0, self.y1]])

    def inset(self, margin: float) -> Rect:
        """The rectangle without a border of `margin` metres (negative: with one more)."""
        return Rect(self.x0 + margin, self.y0 + margin, self.x1 - margin, self.y1 - margin)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A rigid piece of the layout: its own origin lies at `centre`, its +x points along `heading`, its axes are stretched a little."""

    heading: float
    centre: Point
    stretch: Point = (1.0, 1.0)

    def place(self, points: np.ndarray) -> np.ndarray:
        """`points` [n, 2] of the frame, in the layout."""
        return turned(np.asarray(points) * self.stretch, self.heading, self.centre)


def turned(points: np.ndarray, heading: float, centre: Point) -> np.ndarray:
    """`points` [n, 2] turned by `heading` about the origin, then moved to `centre`."""
    c, s = math.cos(heading), math.sin(heading)
    return points @ np.array([[c, s], [-s, c]]) + centre


def turned_each(points: np.ndarray, headings: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """`points` [..., 2] once for each of n `headings` [n] and `centres` [n, 2]: [n, ..., 2]."""
    c, s = np.cos(headings), np.sin(headings)
    turns = np.stack([np.stack([c, s], axis=1), np.stack([-s, c], axis=1)], axis=1)
    flat = points.reshape(-1, 2) @ turns + centres[:, None]
    return flat.reshape(len(headings), *points.shape)


def box(length: float, width: float, heading: float, centre: Point) -> np.ndarray:
    """A rectangle [4, 2] of `length` along `heading` and `width` across it."""
    a, b = length / 2, width / 2
    return turned(np.array([[-a, -b], [a, -b], [a, b], [-a, b]]), heading, centre)


def blob(rect: Rect, rng: np.random.Generator, roughness: float = 0.13, corners: int = 48, squareness: float = 2.4) -> np.ndarray:
    """A smooth irregular outline [corners, 2] that fills `rect` without leaving it by more than a few metres."""
    angle = np.arange(corners) * (2 * math.pi / corners)
    radius = np.ones(corners)
    for wave in (2, 3, 4, 5, 7):
        radius += rng.normal(0, roughness / wave) * 2 * np.cos(wave * angle + rng.uniform(0, 2 * math.pi))
    # A superellipse: between the inscribed ellipse (2) and the rectangle itself (infinity).
    c, s = np.cos(angle), np.sin(angle)
    radius *= (np.abs(c) ** squareness + np.abs(s) ** squareness) ** (-1 / squareness)
    radius *= min(1.0, 1.08 / radius.max()) if squareness <= 2 else 0.9
    x, y = rect.centre
    return np.stack([x + radius * c * rect.width / 2, y + radius * s * rect.height / 2], axis=1)


def grown(outline: np.ndarray, distance: float) -> np.ndarray:
    """A star-shaped `outline` [n, 2] moved outwards from its middle by `distance` metres (negative: inwards)."""
    middle = outline.mean(0)
    arms = outline - middle
    length = np.linalg.norm(arms, axis=1, keepdims=True)
    return middle + arms * np.maximum(0.05, 1 + distance / length)


def ribbon(line: np.ndarray, width: float) -> np.ndarray:
    """The outline [2n, 2] of a band of `width` along the curve `line` [n, 2]."""
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * (width / 2)
    return np.concatenate([line + side, (line - side)[::-1]])


def winding_line(reach: float, rng: np.random.Generator, steps: int = 48) -> np.ndarray:
    """A gently winding curve [steps, 2] that crosses the whole disc of radius `reach`, not far from its middle."""
    t = np.linspace(-1.1, 1.1, steps) * reach
    offset = rng.uniform(-0.35, 0.35) * reach + np.zeros(steps)
    for period in (1.7, 0.9):
        offset += rng.uniform(0.04, 0.1) * period * reach * np.sin(t / (reach * period) * math.pi + rng.uniform(0, 2 * math.pi))
    return turned(np.stack([t, offset], axis=1), rng.uniform(0, math.pi), (0.0, 0.0))


def arc(centre: Point, radius: float, start: float = 0.0, end: float = 2 * math.pi, corners: int = 32) -> np.ndarray:
    """Points [corners, 2] along a circle, clockwise on the picture; a whole circle does not repeat its first point."""
    angle = np.linspace(start, end, corners, endpoint=abs(end - start) < 2 * math.pi - 1e-9)
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], axis=1)


def densified(outline: np.ndarray, step: float) -> np.ndarray:
    """The closed `outline` [n, 2] with corners at most `step` metres apart."""
    pieces = []
    for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        count = max(1, math.ceil(math.dist(start, end) / step))
        pieces.append(start + (end - start) * (np.arange(count) / count)[:, None])
    return np.concatenate(pieces)


def distance_to_line(point: Point, line: np.ndarray) -> float:
    """Metres from `point` to the nearest vertex of `line` [n, 2]."""
    return float(np.sqrt(((line - point) ** 2).sum(1).min()))
