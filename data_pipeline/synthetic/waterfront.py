"""Plans coasts and harbours: the sea, beaches and cliffs, quays, piers, ships at berth and under way."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.plan import Beach, Building, Crate, Patch, Pier, Plan, Sea, Ship, Street, Vehicle
from data_pipeline.synthetic.shapes import Frame, Point, Rect, arc, box, densified, turned
from data_pipeline.synthetic.town import pick

# kind: lengths in metres, width by length, colours.
SHIP_KINDS: dict[str, tuple[tuple[float, float], float, tuple[tuple[str, float], ...]]] = {
    "cargo ship": ((60, 130), 0.17, (("red", 0.3), ("blue", 0.3), ("black", 0.3), ("grey", 0.1))),
    "tanker": ((60, 130), 0.18, (("red", 0.4), ("black", 0.3), ("blue", 0.3))),
    "ferry": ((34, 80), 0.2, (("white", 0.8), ("blue", 0.2))),
    "fishing boat": ((14, 26), 0.3, (("blue", 0.4), ("red", 0.3), ("white", 0.3))),
    "sailing boat": ((9, 14), 0.3, (("white", 0.8), ("blue", 0.2))),
    "motorboat": ((7, 12), 0.34, (("white", 0.7), ("red", 0.15), ("blue", 0.15))),
}
_HARBOUR_SHIPS = (("cargo ship", 0.32), ("tanker", 0.16), ("ferry", 0.2), ("fishing boat", 0.32))
_OPEN_SHIPS = (("cargo ship", 0.14), ("ferry", 0.1), ("fishing boat", 0.28), ("sailing boat", 0.26), ("motorboat", 0.22))
_MARINA_SHIPS = (("sailing boat", 0.55), ("motorboat", 0.45))
_CONTAINERS = ((168, 62, 48), (52, 92, 148), (62, 118, 84), (206, 154, 58), (196, 198, 200), (118, 76, 104))
# No ship is longer than this share of the picture's side.
_LONGEST = 0.42


def build_coast(plan: Plan, world: Rect, rng: np.random.Generator) -> list[Rect]:
    """The sea on the right, a beach or a rocky shore before it; returns the land that is left."""
    extent = plan.extent
    y = np.arange(world.y0, world.y1 + 4.0, 4.0)
    x = np.full_like(y, rng.uniform(-0.2, 0.16) * extent)
    for period, swing in ((1.3, 0.06), (0.5, 0.018), (0.17, 0.005)):
        x += rng.uniform(0.5, 1.0) * swing * extent * np.sin(y * (2 * math.pi / (period * extent)) + rng.uniform(0, 2 * math.pi))
    shore = np.stack([x, y], axis=1)
    afloat = shore + np.array([2.0, 0.0])
    plan.seas.append(_sea(shore, world))
    if rng.random() < 0.72:
        width = min(rng.uniform(16, 36), 0.2 * extent)
        dune = np.stack([x - width * (1 + 0.16 * np.sin(y / 13 + rng.uniform(0, 6))), y], axis=1)
        plan.beaches.append(Beach(np.concatenate([afloat, dune[::-1]])))
        inner = x.min() - 1.2 * width
        _set_parasols(plan, shore, width, rng)
    else:
        width = min(rng.uniform(6, 13), 0.1 * extent)
        jags = rng.uniform(0.5, 1.0, len(y))
        for share, tone in ((1.0, 0.86), (0.6, 1.05)):
            edge = np.stack([x - width * share * jags, y], axis=1)
            rock = palette.lit(palette.jittered(palette.ROCK, rng), tone)
            plan.patches.append(Patch(np.concatenate([afloat, edge[::-1]]), rock, palette.EARTHY))
        inner = x.min() - width
    if rng.random() < 0.4:
        at = int(rng.integers(len(y) // 3, 2 * len(y) // 3))
        _build_marina(plan, Frame(0.0, (float(x[at]) - 6.0, float(y[at]))), min(rng.uniform(30, 60), 0.3 * extent), rng)
    _sail(plan, shore, world, _OPEN_SHIPS, rng)
    # A road along the shore, into which the other streets run.
    front = Rect(inner - 14.0, world.y0, inner - 5.0, world.y1)
    plan.streets.append(Street(front, vertical=True))
    land = Rect(world.x0, world.y0, front.x0, world.y1)
    return [land] if land.width > 20 else []


def build_harbour(plan: Plan, world: Rect, rng: np.random.Generator, slanted: bool) -> list[Rect]:
    """A straight quay with a road behind it, piers into the basin, ships along both; returns the land that is left.

    `slanted` piers leave the quay at an angle; the others leave it squarely.
    """
    edge = rng.uniform(-0.22, 0.08) * plan.extent
    shore = np.array([[edge, world.y0], [edge, world.y1]])
    plan.seas.append(_sea(shore, world))
    width = rng.uniform(26, 38)
    quay = Rect(edge - width, world.y0, edge + 0.8, world.y1)
    plan.patches.append(Patch(quay.corners(), palette.jittered(palette.CONCRETE, rng), palette.PAVED))
    street = Rect(quay.x0 - 9, world.y0, quay.x0, world.y1)
    plan.streets.append(Street(street, vertical=True))
    # All piers lean the same way, or their ships would meet.
    lean = float(rng.choice([-1, 1])) * rng.uniform(0.42, 0.7) if slanted else 0.0
    y = world.y0 + rng.uniform(0, 40)
    while y < world.y1:
        reach = min(rng.uniform(36, 120), 0.42 * plan.extent)
        frame = Frame(lean, (edge - 1.0, y))
        if rng.random() < 0.3:
            _build_marina(plan, frame, min(reach, 64.0), rng)
            y += rng.uniform(44, 60)
            continue
        breadth = rng.uniform(8, 15)
        plan.piers.append(Pier(frame, (Rect(-0.5 * breadth * math.tan(abs(lean)), -breadth / 2, reach, breadth / 2),), wooden=False))
        for side in (-1, 1):
            _moor_along(plan, frame, side, breadth / 2, reach, rng)
        if rng.random() < 0.7:
            _stack_containers(plan, frame, Rect(6.0, -breadth / 2 + 2.0, reach - 6.0, breadth / 2 - 2.0), rng, 0.3)
        y += rng.uniform(72, 104)
    _furnish_quay(plan, quay, rng)
    _sail(plan, shore, world, _HARBOUR_SHIPS, rng)
    return [Rect(world.x0, world.y0, street.x0, world.y1)]


def _sea(shore: np.ndarray, world: Rect) -> Sea:
    far = np.array([[world.x1 + 2 * world.width, world.y1], [world.x1 + 2 * world.width, world.y0]])
    return Sea(np.concatenate([shore, far]), shore)


def _set_parasols(plan: Plan, shore: np.ndarray, width: float, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(0, 3)) * len(shore) // 8):
        x, y = shore[int(rng.integers(len(shore)))]
        centre = (x - width * rng.uniform(0.25, 0.75), y + rng.uniform(-2, 2))
        colour = ((206, 60, 54), (62, 112, 176), (236, 206, 92), (240, 240, 234))[int(rng.integers(4))]
        plan.parasols.append(Crate(arc(centre, 1.3, corners=8), colour, 2.0))


def _build_marina(plan: Plan, frame: Frame, reach: float, rng: np.random.Generator) -> None:
    """A wooden pier with fingers, small boats between them."""
    rects, boats = [Rect(0.0, -1.5, reach, 1.5)], []
    pitch, finger = rng.uniform(8.5, 10.5), 9.0
    for x in np.arange(14.0, reach - 1.0, pitch):
        rects.append(Rect(x - 0.6, -finger - 1.5, x + 0.6, finger + 1.5))
        for side in (-1, 1):
            if x + pitch < reach and rng.random() < 0.7:
                kind = pick(_MARINA_SHIPS, rng)
                length, width, colour = _measures(kind, plan.extent, rng)
                length, width = min(length, 11.0), min(width, pitch - 3.4)
                place = frame.place(np.array([[x + pitch / 2, side * (2.3 + length / 2)]]))[0]
                heading = frame.heading + side * math.pi / 2 + (math.pi if rng.random() < 0.3 else 0.0)
                boats.append(Ship(kind, colour, (float(place[0]), float(place[1])), heading, length, width, moving=False))
    plan.piers.append(Pier(frame, tuple(rects), wooden=True))
    plan.ships += boats


def _moor_along(plan: Plan, frame: Frame, side: int, half: float, reach: float, rng: np.random.Generator) -> None:
    at = 7.0 + rng.uniform(0, 8)
    while at < reach - 8:
        kind = pick(_HARBOUR_SHIPS, rng)
        length, width, colour = _measures(kind, plan.extent, rng)
        # Two ships that lie between neighbouring piers must leave water between them.
        width = min(width, 15.0)
        if at + length > reach + 0.25 * length:
            kind = "fishing boat"
            length, width, colour = _measures(kind, plan.extent, rng)
        if at + length > reach:
            return
        if rng.random() < 0.7:
            place = frame.place(np.array([[at + length / 2, side * (half + width / 2 + 0.9)]]))[0]
            heading = frame.heading + (math.pi if rng.random() < 0.5 else 0.0)
            plan.ships.append(Ship(kind, colour, (float(place[0]), float(place[1])), heading, length, width, moving=False))
        at += length + rng.uniform(4, 14)


def _measures(kind: str, extent: float, rng: np.random.Generator) -> tuple[float, float, str]:
    (shortest, longest), ratio, colours = SHIP_KINDS[kind]
    length = min(rng.uniform(shortest, longest), max(12.0, _LONGEST * extent))
    return length, length * ratio * rng.uniform(0.92, 1.08), pick(colours, rng)


def _stack_containers(plan: Plan, frame: Frame, rect: Rect, rng: np.random.Generator, share: float) -> None:
    """Containers in rows, `share` of the places taken."""
    for x in np.arange(rect.x0 + 3.2, rect.x1 - 3.0, 6.9):
        for y in np.arange(rect.y0 + 1.3, rect.y1 - 1.2, 2.9):
            if rng.random() < share:
                outline = frame.place(box(6.1, 2.45, 0.0, (float(x), float(y))))
                colour = palette.jittered(_CONTAINERS[int(rng.integers(len(_CONTAINERS)))], rng)
                plan.crates.append(Crate(outline, colour, 2.6 * float(rng.integers(1, 4))))


def _furnish_quay(plan: Plan, quay: Rect, rng: np.random.Generator) -> None:
    """Sheds, stacks of containers, and trucks on the strip between them and the water."""
    y = quay.y0 + rng.uniform(4, 20)
    while y < quay.y1 - 30:
        length = rng.uniform(24, 48)
        if rng.random() < 0.5:
            depth = quay.width * rng.uniform(0.42, 0.5)
            colour = pick((("grey", 0.4), ("white", 0.3), ("blue", 0.15), ("red", 0.15)), rng)
            kind = pick((("gable", 0.4), ("flat", 0.4), ("hangar", 0.2)), rng)
            centre = (quay.x0 + 3 + depth / 2, y + length / 2)
            plan.buildings.append(Building(kind, colour, centre, length, depth, math.pi / 2, rng.uniform(7, 11)))
        else:
            stack = Rect(quay.x0 + 3, y, quay.x0 + 0.55 * quay.width, y + length)
            _stack_containers(plan, Frame(0.0, (0.0, 0.0)), stack, rng, rng.uniform(0.4, 0.8))
        y += length + rng.uniform(5, 12)
    lane = quay.x1 - 0.26 * quay.width
    y = quay.y0 + rng.uniform(0, 30)
    while y < quay.y1:
        kind = pick((("truck", 0.65), ("car", 0.35)), rng)
        plan.vehicles.append(Vehicle(kind, pick((("white", 0.4), ("red", 0.3), ("blue", 0.3)), rng), (lane, y), math.pi / 2))
        y += rng.uniform(20, 60)


def _sail(plan: Plan, shore: np.ndarray, world: Rect, kinds: tuple[tuple[str, float], ...], rng: np.random.Generator) -> None:
    """Ships on open water, most of them under way, none near another, a pier or the shore."""
    piers = np.concatenate([p.frame.place(densified(r.corners(), 6.0)) for p in plan.piers for r in p.rects] or [np.zeros((0, 2))])
    edge = float(shore[:, 0].max())
    room = world.x1 - edge
    for _ in range(int(rng.integers(2, 6)) * max(1, round((plan.extent / 250) ** 1.5))):
        kind = pick(kinds, rng)
        length, width, colour = _measures(kind, plan.extent, rng)
        centre = (edge + 8 + length * 0.3 + rng.random() * max(10.0, room), rng.uniform(world.y0, world.y1))
        heading = float(rng.choice([-1, 1])) * math.pi / 2 + rng.normal(0, 0.4)
        ship = Ship(kind, colour, centre, heading, length, width, moving=bool(rng.random() < 0.8))
        if _afloat(ship, plan.ships, piers, shore):
            plan.ships.append(ship)


def _afloat(ship: Ship, others: list[Ship], piers: np.ndarray, shore: np.ndarray) -> bool:
    outline = _outline_with_wake(ship)
    near = np.interp(outline[:, 1], shore[:, 1], shore[:, 0])
    if not (outline[:, 0] > near + 6).all():
        return False
    # A wake is longer than its ship.
    reach = ship.length * (1.3 if ship.moving else 0.6)
    if len(piers) and _nearest(ship.centre, piers) < reach + 6:
        return False
    return all(math.dist(ship.centre, other.centre) > reach + other.length * (1.3 if other.moving else 0.6) for other in others)


def _outline_with_wake(ship: Ship) -> np.ndarray:
    """Corners [4, 2] around the hull, and around the wake where there is one."""
    bow, half = ship.length / 2, ship.width / 2
    stern = -bow
    if ship.moving:
        stern, half = -1.3 * ship.length, 0.65 * ship.width + 0.2 * ship.length
    return turned(np.array([[stern, -half], [bow, -half], [bow, half], [stern, half]]), ship.heading, ship.centre)


def _nearest(point: Point, places: np.ndarray) -> float:
    return float(np.sqrt(((places - point) ** 2).sum(1).min()))


def keep_apart(plan: Plan) -> None:
    """Takes away ships whose hulls, as discs along their length, touch one that came before or lie on a pier."""
    kept: list[Ship] = []
    discs: list[np.ndarray] = []
    decks = [(pier.frame, rect) for pier in plan.piers for rect in pier.rects]
    for ship in plan.ships:
        mine = _spine(ship)
        if any(_on_deck(mine, frame, rect) for frame, rect in decks):
            continue
        clear = all(
            np.sqrt(((mine[:, None, :2] - other[None, :, :2]) ** 2).sum(-1)).min() > (mine[0, 2] + other[0, 2]) * 0.98 for other in discs
        )
        if clear:
            kept.append(ship)
            discs.append(mine)
    plan.ships = kept


def _on_deck(spine: np.ndarray, frame: Frame, rect: Rect) -> bool:
    """Whether a hull with the discs `spine` [n, 3] lies on the deck `rect` of a pier in `frame`; alongside is not on it."""
    local = turned(spine[:, :2] - frame.centre, -frame.heading, (0.0, 0.0))
    away = np.maximum(0.0, np.abs(local - rect.centre) - (rect.width / 2, rect.height / 2))
    return bool((np.hypot(away[:, 0], away[:, 1]) < 0.95 * spine[:, 2]).any())


def _spine(ship: Ship) -> np.ndarray:
    """Discs [n, 3] (x, y, radius) along the keel."""
    half = max(0.0, (ship.length - ship.width) / 2)
    at = np.linspace(-half, half, max(2, math.ceil(2 * half / (0.8 * ship.width)) + 1))
    x = ship.centre[0] + at * math.cos(ship.heading)
    y = ship.centre[1] + at * math.sin(ship.heading)
    return np.stack([x, y, np.full_like(at, ship.width / 2)], axis=1)
