"""The surface buffer: what is seen at every point of the picture, drawn from the ground up.

Shapes are given in metres and painted one over the other into a buffer of surface numbers that is three times finer than the
picture. A pixel of a mask is decided at its centre (the middle one of its nine samples), a pixel of the picture is the mean of its
nine samples: pictures are antialiased, masks are exact, and what is covered is in no mask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.synthetic.palette import STRENGTHS, Colour, Finish
from data_pipeline.synthetic.shapes import Frame, Rect

# Odd, so that one sample lies at the centre of the pixel.
SUPERSAMPLING = 3
# The colour buffer is made in strips of about this many samples, which bounds the memory of large pictures.
_STRIP_SAMPLES = 1 << 22
# Up to this many metres from edge to edge a scene has far fewer surfaces than 16 bits can number, and the narrow buffer is faster.
_NARROW_EXTENT = 640.0


@dataclasses.dataclass(frozen=True)
class View:
    """The camera and the sun: `size` pixels of `metres_per_pixel`, the layout turned by `heading`, shadows falling towards `sun`."""

    size: int
    metres_per_pixel: float
    heading: float = 0.0  # radians
    sun: float = math.pi / 4  # direction of the shadows in the picture, radians; 0 is to the right, pi/2 is down
    slant: float = 0.7  # metres of shadow per metre of height

    @property
    def extent(self) -> float:
        """Metres from edge to edge."""
        return self.size * self.metres_per_pixel


class Canvas:
    """Paints surfaces in the layout's frame: metres, origin at the picture's centre, y downwards."""

    def __init__(self, view: View, look: Callable[[Colour, Finish], tuple[Colour, Finish]] | None = None):
        """`look`, where there is one, turns colour and finish of every surface into those that the season and the camera show."""
        self.view = view
        self._look = look
        side = view.size * SUPERSAMPLING
        self._samples = Image.new("I;16" if view.extent <= _NARROW_EXTENT else "I", (side, side), 0)
        self._shadows = Image.new("L", (side, side), 0)
        self._draw = ImageDraw.Draw(self._samples)
        self._draw_shadow = ImageDraw.Draw(self._shadows)
        # Until the first shadow falls, painting need not lift anything out of the shade.
        self._shaded = False
        self._samples_per_metre = SUPERSAMPLING / view.metres_per_pixel
        c, s = math.cos(view.heading), math.sin(view.heading)
        self._turn = np.array([[c, s], [-s, c]]) * self._samples_per_metre
        self._centre = side / 2
        # Where the origin of the frame lies from the picture's centre, and how far the frame is turned: see `moved`.
        self._shift = np.zeros(2)
        self._heading = view.heading
        reach = view.slant * self._samples_per_metre
        self._shadow_step = np.array([math.cos(view.sun), math.sin(view.sun)]) * reach
        self._colours: list[Colour] = []
        self._finishes: list[Finish] = []
        self._owners: list[tuple[int, int]] = []

    def surface(self, colour: Colour, finish: Finish, owner: int = 0, part: int = 0) -> int:
        """The number of a new surface that belongs to object `owner` (0: to none) and to its part `part` (0: to none)."""
        if self._look is not None:
            colour, finish = self._look(colour, finish)
        self._colours.append(colour)
        self._finishes.append(finish)
        self._owners.append((owner, part))
        return len(self._colours) - 1

    @contextlib.contextmanager
    def moved(self, frame: Frame) -> Iterator[None]:
        """Within, shapes are given in `frame`, itself given in the layout's frame."""
        outer = self._turn, self._shift, self._heading
        c, s = math.cos(frame.heading), math.sin(frame.heading)
        self._shift = np.asarray(frame.centre) @ self._turn + self._shift
        self._turn = np.diag(frame.stretch) @ np.array([[c, s], [-s, c]]) @ self._turn
        self._heading += frame.heading
        try:
            yield
        finally:
            self._turn, self._shift, self._heading = outer

    def sees(self, centres: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
        """Which of the discs around `centres` [..., 2] may touch the picture: bool [...]."""
        farthest = np.abs(np.asarray(centres) @ self._turn + self._shift).max(-1)
        return farthest <= self._centre + np.asarray(radii) * self._samples_per_metre

    def facing(self, heading: float) -> float:
        """How far a slope whose outward direction is `heading` (layout frame) turns to the sun, from -1 to 1."""
        return -math.cos(heading + self._heading - self.view.sun)

    def polygon(self, points: np.ndarray, surface: int) -> None:
        """Paints the polygon `points` [n, 2]."""
        self._paint(self._place(points).ravel().tolist(), surface)

    def polygons(self, shapes: np.ndarray, surfaces: int | np.ndarray) -> None:
        """Paints many polygons `shapes` [m, n, 2] with one surface or with `surfaces` [m]; those out of sight are skipped."""
        placed = self._place(shapes)
        inside = ((placed.max(1) >= 0) & (placed.min(1) <= 2 * self._centre)).all(-1)
        surfaces = np.broadcast_to(surfaces, len(placed))[inside].tolist()
        for corners, surface in zip(placed.reshape(len(placed), 2 * shapes.shape[1])[inside].tolist(), surfaces, strict=True):
            self._paint(corners, surface)

    def rects(self, rects: Sequence[Rect], surface: int) -> None:
        """Paints many upright rectangles, or none."""
        if rects:
            self.polygons(np.stack([rect.corners() for rect in rects]), surface)

    def discs(self, centres: np.ndarray, radii: np.ndarray, surfaces: Sequence[int]) -> None:
        """Paints many discs: `centres` [n, 2], `radii` [n]."""
        for box, surface in zip(self._disc_boxes(centres, radii), surfaces, strict=True):
            self._draw.ellipse(box, fill=surface)
            if self._shaded:
                self._draw_shadow.ellipse(box, fill=0)

    def shade_prism(self, points: np.ndarray, height: float) -> None:
        """Casts the shadow of an upright body of `height` metres that stands on the convex clockwise polygon `points` [n, 2]."""
        foot = self._place(points)
        edges = np.roll(foot, -1, axis=0) - foot
        dx, dy = self._shadow_step * height
        # Clockwise on the picture, an edge looks along (y, -x): those that look the way the shadow falls move to its far end.
        leading = edges[:, 1] * dx > edges[:, 0] * dy
        outline: list[float] = []
        for (x, y), before, after in zip(foot.tolist(), np.roll(leading, 1).tolist(), leading.tolist(), strict=True):
            near, far = [x, y], [x + dx, y + dy]
            outline += far if before and after else near if not (before or after) else near + far if after else far + near
        self._shade(outline)

    def shade_floating(self, points: np.ndarray, height: float) -> None:
        """Casts the shadow of a thin body `points` [n, 2] at `height` metres above the ground, such as a wing."""
        self._shade((self._place(points) + self._shadow_step * height).ravel().tolist())

    def shade_discs(self, centres: np.ndarray, radii: np.ndarray, heights: np.ndarray | float) -> None:
        """Casts the shadows of balls: `centres` [n, 2], `radii` [n], the middle of each `heights` [n] metres above the ground."""
        step = np.broadcast_to(np.asarray(heights), radii.shape)[:, None] * self._shadow_step
        self._shaded = True
        for box in self._disc_boxes(centres, radii, step):
            self._draw_shadow.ellipse(box, fill=255)

    def towards_sun(self, distance: float) -> np.ndarray:
        """The step [2] of `distance` metres towards the sun, in the layout's frame."""
        away = self.view.sun - self._heading
        return -distance * np.array([math.cos(away), math.sin(away)])

    def colour_picture(self) -> Image.Image:
        """The antialiased picture in flat colours, without light: RGBX."""
        table = np.zeros((len(self._colours), 4), np.uint8)
        table[:, :3] = self._colours
        packed = table.view(np.uint32).ravel()
        size = self.view.size
        picture = Image.new("RGBX", (size, size))
        for top, bottom in self._strips():
            samples = self._sample_rows(top * SUPERSAMPLING, bottom * SUPERSAMPLING)
            strip = Image.frombuffer("RGBX", samples.shape[::-1], np.take(packed, samples, mode="clip"), "raw", "RGBX", 0, 1)
            picture.paste(strip.reduce(SUPERSAMPLING), (0, top))
        return picture

    def shadow_picture(self) -> np.ndarray:
        """How much of each pixel lies in shadow: float32 [size, size] from 0 to 1."""
        return np.asarray(self._shadows.reduce(SUPERSAMPLING), np.float32) / 255

    def surface_map(self) -> np.ndarray:
        """The surface at the centre of each pixel: intp [size, size], fit to look up tables by surface."""
        middle, size = SUPERSAMPLING // 2, self.view.size
        surfaces = np.empty((size, size), np.intp)
        for top, bottom in self._strips():
            samples = self._sample_rows(top * SUPERSAMPLING, bottom * SUPERSAMPLING)
            surfaces[top:bottom] = samples[middle::SUPERSAMPLING, middle::SUPERSAMPLING]
        return surfaces

    def release(self) -> None:
        """Gives back the buffers: nothing more is painted or read. They are most of the memory of a large picture."""
        self._samples = self._shadows = self._draw = self._draw_shadow = None

    def owner_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Object and part of every surface: int32 [surfaces] each."""
        owners = np.asarray(self._owners, np.int32)
        return owners[:, 0].copy(), owners[:, 1].copy()

    def finish_tables(self) -> dict[str, np.ndarray]:
        """Each field of `Finish` for every surface: float32 [surfaces]."""
        columns = np.ascontiguousarray(np.array([finish.row for finish in self._finishes], np.float32).T)
        return dict(zip(STRENGTHS, columns, strict=True))

    def _place(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points) @ self._turn + (self._shift + self._centre)

    def _paint(self, corners: list[float], surface: int) -> None:
        self._draw.polygon(corners, fill=surface)
        if self._shaded:
            self._draw_shadow.polygon(corners, fill=0)

    def _shade(self, corners: list[float]) -> None:
        self._shaded = True
        self._draw_shadow.polygon(corners, fill=255)

    def _disc_boxes(self, centres: np.ndarray, radii: np.ndarray, step: np.ndarray | float = 0.0) -> list[list[float]]:
        middle, reach = self._place(centres) + step, np.asarray(radii)[:, None] * self._samples_per_metre
        return np.concatenate([middle - reach, middle + reach], axis=1).tolist()

    def _strips(self) -> list[tuple[int, int]]:
        """The picture's rows in pieces, [top, bottom) each."""
        size = self.view.size
        rows = max(1, _STRIP_SAMPLES // (size * SUPERSAMPLING**2))
        return [(top, min(size, top + rows)) for top in range(0, size, rows)]

    def _sample_rows(self, top: int, bottom: int) -> np.ndarray:
        if (top, bottom) == (0, self._samples.height):
            return np.asarray(self._samples)
        return np.asarray(self._samples.crop((0, top, self._samples.width, bottom)))
