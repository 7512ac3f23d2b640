"""Draws what lies flat: land, fields, water, streets, parking lots, and the pavements of an airport."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import Finish, jittered
from data_pipeline.synthetic.plan import Apron, Field, Lake, ParkingLot, Plan, River, Runway, Street, Taxiway
from data_pipeline.synthetic.shapes import Rect, grown, ribbon
from data_pipeline.synthetic.town import AISLE, STALL_LENGTH, STALL_WIDTH, stall_rows


def draw_land(canvas: Canvas, plan: Plan, rng: np.random.Generator) -> None:
    """The meadow below everything, and the ground that belongs to no object."""
    reach = plan.extent
    meadow = canvas.surface(jittered(palette.GRASS, rng, 0.1), palette.GRASSY)
    canvas.polygon(Rect(-reach, -reach, reach, reach).corners(), meadow)
    for patch in plan.patches:
        canvas.polygon(patch.outline, canvas.surface(patch.colour, patch.finish))


def draw_field(canvas: Canvas, field: Field, owner: int, rng: np.random.Generator) -> None:
    """Furrows, and the wheel tracks of the machines that tend them."""
    colour = jittered(palette.FIELD_COLOURS[field.colour], rng)
    finish = Finish(0.035, 0.08, furrow=0.09, furrow_period=field.furrow_period, furrow_heading=field.furrow_heading, material="crop")
    canvas.polygon(field.outline, canvas.surface(colour, finish, owner))
    track = canvas.surface(palette.lit(colour, 0.86), finish, owner)
    if field.tracks is not None:
        for line in field.tracks:
            canvas.polygon(line, track)
        return
    lower, upper = field.outline.min(0) + 2.5, field.outline.max(0) - 2.5
    along = 0 if abs(math.cos(field.furrow_heading)) > 0.7 else 1
    for at in np.arange(lower[1 - along] + rng.uniform(3, 9), upper[1 - along] - 2, 13.0):
        for wheel in (0.0, 1.9):
            line = np.empty((4, 2))
            line[:, along] = (lower[along], upper[along], upper[along], lower[along])
            line[:, 1 - along] = at + wheel + np.array([0, 0, 0.5, 0.5])
            canvas.polygon(line, track)


def draw_flooded_field(canvas: Canvas, field: Field, owner: int, rng: np.random.Generator) -> None:
    """Muddy water in which the furrows are still to be guessed."""
    finish = Finish(
        0.01, 0.06, ripple=0.03, furrow=0.02, furrow_period=field.furrow_period, furrow_heading=field.furrow_heading, material="water"
    )
    canvas.polygon(field.outline, canvas.surface(jittered(palette.FLOOD_WATER, rng), finish, owner))
    drowned = canvas.surface(palette.mixed(palette.FLOOD_WATER, palette.FIELD_COLOURS[field.colour], 0.3), finish, owner)
    for line in field.tracks or ():
        canvas.polygon(line, drowned)


def draw_lake(canvas: Canvas, lake: Lake, owner: int, rng: np.random.Generator) -> None:
    """Still water inside its bank."""
    canvas.polygon(grown(lake.outline, lake.bank), canvas.surface(jittered(palette.SAND, rng), palette.SANDY))
    canvas.polygon(lake.outline, canvas.surface(jittered(palette.LAKE_WATER, rng), palette.WATERY, owner))


def draw_river(canvas: Canvas, river: River, owner: int, rng: np.random.Generator) -> None:
    """Running water between its banks."""
    bank = canvas.surface(jittered(palette.SAND, rng), palette.SANDY)
    water = canvas.surface(jittered(palette.RIVER_WATER, rng), palette.WATERY, owner)
    canvas.polygon(ribbon(river.line, river.width + 2 * river.bank), bank)
    canvas.polygon(ribbon(river.line, river.width), water)


def draw_streets(canvas: Canvas, streets: list[Street], owner: int, rng: np.random.Generator) -> None:
    """All streets are one object: where they meet, neither has the crossing to itself."""
    if not streets:
        return
    walk = canvas.surface(jittered(palette.PAVEMENT, rng), palette.PAVED)
    asphalt = canvas.surface(jittered(palette.ASPHALT, rng), palette.PAVED, owner)
    paint = canvas.surface(palette.WHITE_PAINT, palette.PAINTED, owner)
    for street in streets:
        canvas.polygon(street.rect.corners(), walk)
    for street in streets:
        canvas.polygon(_roadway(street).corners(), asphalt)
    for street in streets:
        _paint_street(canvas, street, paint)


def _roadway(street: Street) -> Rect:
    # The ends reach over the pavement of the street that they run into.
    r, kerb = street.rect, 1.0
    if street.vertical:
        return Rect(r.x0 + kerb, r.y0 - kerb - 0.2, r.x1 - kerb, r.y1 + kerb + 0.2)
    return Rect(r.x0 - kerb - 0.2, r.y0 + kerb, r.x1 + kerb + 0.2, r.y1 - kerb)


def _paint_street(canvas: Canvas, street: Street, paint: int) -> None:
    r = street.rect
    x, y = r.centre
    # Narrower than a third of a pixel, paint would come and go with the position.
    half = max(0.09, canvas.view.metres_per_pixel / 6)
    start, end = (r.y0, r.y1) if street.vertical else (r.x0, r.x1)
    dash = np.array([[0, -half], [3.2, -half], [3.2, half], [0, half]])
    at = np.arange(start + 2.5, end - 3.5, 6.5)
    if street.vertical:
        canvas.polygons(dash[:, ::-1] + np.stack([np.full_like(at, x), at], axis=1)[:, None], paint)
    else:
        canvas.polygons(dash + np.stack([at, np.full_like(at, y)], axis=1)[:, None], paint)


def draw_parking_lot(canvas: Canvas, lot: ParkingLot, owner: int, rng: np.random.Generator) -> None:
    """Asphalt with the lines of its stalls."""
    rect = lot.rect
    canvas.polygon(rect.corners(), canvas.surface(jittered(palette.PARKING_ASPHALT, rng), palette.PAVED, owner))
    paint = canvas.surface(palette.WHITE_PAINT, palette.PAINTED, owner)
    half = max(0.07, canvas.view.metres_per_pixel / 8)
    corner = np.array([rect.x0, rect.y0])
    length = rect.height if lot.aisles_vertical else rect.width
    line = np.array([[0, -half], [STALL_LENGTH, -half], [STALL_LENGTH, half], [0, half]])
    along = 1 + np.arange(int((length - 2) / STALL_WIDTH) + 1) * STALL_WIDTH
    depth = rect.width if lot.aisles_vertical else rect.height
    for row in stall_rows(rect, lot.aisles_vertical):
        lines = line + np.stack([np.full_like(along, row), along], axis=1)[:, None]
        canvas.polygons((lines if lot.aisles_vertical else lines[..., ::-1]) + corner, paint)
        back = row + STALL_LENGTH + AISLE / 2
        if back < depth - 1:
            _paint_arrows(canvas, lot, back, length, paint)


def _paint_arrows(canvas: Canvas, lot: ParkingLot, across: float, length: float, paint: int) -> None:
    """The driving direction, in the middle of an aisle."""
    arrow = np.array([[-1.6, -0.15], [0.4, -0.15], [0.4, -0.7], [1.6, 0.0], [0.4, 0.7], [0.4, 0.15], [-1.6, 0.15]])
    for along in np.arange(10, length - 6, 22.0):
        shape = arrow + np.array([along, across])
        shape = shape[:, ::-1] if lot.aisles_vertical else shape
        canvas.polygon(shape + np.array([lot.rect.x0, lot.rect.y0]), paint)


def draw_apron(canvas: Canvas, apron: Apron, owner: int, rng: np.random.Generator) -> None:
    """Concrete slabs with joints, oil stains and the yellow lead-in line."""
    rect = apron.rect
    colour = jittered(palette.CONCRETE, rng)
    slabs = canvas.surface(colour, palette.PAVED, owner)
    joint = canvas.surface(palette.lit(colour, 0.88), palette.PAVED, owner)
    canvas.polygon(rect.corners(), slabs)
    half = max(0.1, canvas.view.metres_per_pixel / 6)
    x, y = np.arange(rect.x0 + 7.5, rect.x1 - 2, 7.5), np.arange(rect.y0 + 7.5, rect.y1, 7.5)
    canvas.rects([Rect(at - half, rect.y0, at + half, rect.y1) for at in x], joint)
    canvas.rects([Rect(rect.x0, at - half, rect.x1, at + half) for at in y], joint)
    stain = canvas.surface(palette.lit(colour, 0.94), palette.PAVED, owner)
    count = int(rect.height / 12)
    places = rng.uniform((rect.x0 + 4, rect.y0), (rect.x1 - 4, rect.y1), (count, 2))
    canvas.discs(places, rng.uniform(0.8, 2.4, count), [stain] * count)
    line = canvas.surface(palette.YELLOW_PAINT, palette.PAINTED, owner)
    x = rect.x1 - 6
    canvas.polygon(Rect(x - half, rect.y0, x + half, rect.y1).corners(), line)


def draw_taxiway(canvas: Canvas, taxiway: Taxiway, owner: int, rng: np.random.Generator) -> None:
    """Asphalt strips with a yellow centre line; the first strip is the long one."""
    asphalt = canvas.surface(jittered(palette.TAXIWAY_ASPHALT, rng), palette.PAVED, owner)
    line = canvas.surface(palette.YELLOW_PAINT, palette.PAINTED, owner)
    half = max(0.15, canvas.view.metres_per_pixel / 6)
    for rect in taxiway.rects:
        canvas.polygon(rect.corners(), asphalt)
    for number, rect in enumerate(taxiway.rects):
        x, y = rect.centre
        centre_line = Rect(rect.x0, y - half, rect.x1, y + half) if number else Rect(x - half, rect.y0, x + half, rect.y1)
        canvas.polygon(centre_line.corners(), line)


def draw_runway(canvas: Canvas, runway: Runway, owner: int, rng: np.random.Generator) -> None:
    """Dark asphalt, white edges and centre line, piano keys and touchdown marks at the threshold, rubber on the wheel tracks."""
    rect = runway.rect
    colour = jittered(palette.RUNWAY_ASPHALT, rng)
    canvas.polygon(rect.corners(), canvas.surface(colour, palette.PAVED, owner))
    rubber = canvas.surface(palette.lit(colour, 0.86), palette.PAVED, owner)
    paint = canvas.surface(palette.WHITE_PAINT, palette.PAINTED, owner)
    x, width = rect.centre[0], rect.width
    for side in (-1, 1):
        wheel = x + side * width * 0.13
        canvas.polygon(Rect(wheel - 1.3, rect.y0, wheel + 1.3, rect.y1).corners(), rubber)
        edge = x + side * (width / 2 - 1.4)
        canvas.polygon(Rect(edge - 0.45, rect.y0, edge + 0.45, rect.y1).corners(), paint)
    keys = runway.threshold
    dashes = [y for y in np.arange(rect.y0, rect.y1, 17.0) if keys is None or abs(y + 4.5 - keys) > 22]
    canvas.rects([Rect(x - 0.5, y, x + 0.5, y + 9) for y in dashes], paint)
    if keys is None:
        return
    for number in range(5):
        for side in (-1, 1):
            centre = x + side * (width * 0.07 + number * width * 0.075)
            half = width * 0.024
            canvas.polygon(Rect(centre - half, keys - 8, centre + half, keys + 8).corners(), paint)
    for side in (-1, 1):
        centre = x + side * width * 0.2
        canvas.polygon(Rect(centre - width * 0.055, keys + 24, centre + width * 0.055, keys + 36).corners(), paint)
