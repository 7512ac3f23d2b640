"""Plans sports grounds: packs courts, pitches, tracks and pools into a block, and pools into gardens."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.country import scatter_trees
from data_pipeline.synthetic.plan import Building, Patch, Plan, SportsGround
from data_pipeline.synthetic.shapes import Frame, Point, Rect

# (category, weight, longest, shortest, width by length), metres; a tennis or basketball court has one size, its run-off included.
_KINDS = (
    ("running track", 2.4, 172.0, 96.0, 0.53),
    ("football pitch", 1.0, 105.0, 62.0, 0.65),
    ("tennis court", 1.2, 36.6, 36.6, 0.5),
    ("basketball court", 0.8, 30.0, 30.0, 0.57),
    ("swimming pool", 0.7, 50.0, 25.0, 0.48),
)
_ALONE = ("running track", "football pitch", "swimming pool")
_GAP = 3.0
_MOST = 9  # grounds in a block


def build_grounds(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """Fills the block with the grounds that fit it, largest first, between lawns and trees."""
    plan.patches.append(Patch(rect.corners(), palette.jittered(palette.LAWN, rng), palette.GRASSY))
    first = len(plan.grounds)
    # Within a block the courts of one sport look alike.
    colours = {category: _colour(category, rng) for category, *_ in _KINDS}
    rest, used = [rect.inset(1.5)], set()
    while rest and len(plan.grounds) - first < _MOST:
        space = rest.pop(0)
        choice = _choose(space, used, rng)
        if choice is None:
            if min(space.width, space.height) > 6:
                scatter_trees(plan, space, int(space.width * space.height / 160), rng)
            continue
        category, length, width = choice
        used.add(category)
        upright = space.height > space.width
        across, down = (width, length) if upright else (length, width)
        corner = Rect(space.x0, space.y0, space.x0 + across + 2 * _GAP, space.y0 + down + 2 * _GAP)
        if category == "running track" and not used.isdisjoint({"tennis court", "swimming pool"}):
            continue
        _lay(plan, category, colours[category], corner.centre, length, width, upright, rng)
        rest += _remaining(space, corner)


def _choose(space: Rect, used: set[str], rng: np.random.Generator) -> tuple[str, float, float] | None:
    """Category, length and width of a ground that fits into `space`."""
    room, depth = max(space.width, space.height) - 2 * _GAP, min(space.width, space.height) - 2 * _GAP
    fitting, weights = [], []
    for category, weight, longest, shortest, ratio in _KINDS:
        length = min(longest, room, depth / ratio)
        if length < shortest - 1e-9 or (category in _ALONE and category in used):
            continue
        fitting.append((category, length, length * ratio))
        weights.append(weight * (2.5 if category in used else 1.0))
    if not fitting:
        return None
    category, length, width = fitting[int(rng.choice(len(fitting), p=np.array(weights) / sum(weights)))]
    if category == "swimming pool":
        length = 50.0 if length >= 50.0 else 25.0
        width = length * float(rng.choice([0.42, 0.48]))
    elif category in ("running track", "football pitch"):
        length, width = length * (shrink := rng.uniform(0.92, 1.0)), width * shrink
    return category, length, width


def _colour(category: str, rng: np.random.Generator) -> str | None:
    shares = {
        "tennis court": (("green", 0.35), ("blue", 0.35), ("red", 0.3)),
        "basketball court": (("red", 0.4), ("green", 0.3), ("blue", 0.3)),
        "running track": (("red", 0.8), ("blue", 0.2)),
    }.get(category)
    if shares is None:
        return None
    return str(rng.choice([name for name, _ in shares], p=[share for _, share in shares]))


def _remaining(space: Rect, corner: Rect) -> list[Rect]:
    """The two pieces of `space` beside and below `corner`; the larger cut stays whole."""
    if space.width - corner.width > space.height - corner.height:
        return [Rect(corner.x1, space.y0, space.x1, space.y1), Rect(space.x0, corner.y1, corner.x1, space.y1)]
    return [Rect(space.x0, corner.y1, space.x1, space.y1), Rect(corner.x1, space.y0, space.x1, corner.y1)]


def _lay(
    plan: Plan, category: str, colour: str | None, centre: Point, length: float, width: float, upright: bool, rng: np.random.Generator
) -> None:
    frame = Frame(math.pi / 2 if upright else 0.0, centre)
    plan.grounds.append(SportsGround(category, colour, frame, length, width))
    if category == "running track" and rng.random() < 0.8:
        # The pitch inside the lanes.
        inner = width - 2 * lane_width(length)
        plan.grounds.append(SportsGround("football pitch", None, frame, length - width - 4.0 + 0.3 * inner, inner * 0.84))


def lane_width(length: float) -> float:
    """The width in metres of all lanes of a running track of `length` metres from end to end."""
    return 8.5 * length / 172.0 + 1.2


def dig_garden_pools(plan: Plan, rect: Rect, houses: list[Building], rng: np.random.Generator) -> None:
    """A small pool in the garden of some of the `houses` of the block `rect`, where neither a house nor a driveway is."""
    for house in houses:
        if rng.random() > 0.35:
            continue
        length, width = rng.uniform(7, 10), rng.uniform(3.6, 4.8)
        side = house.heading + (math.pi / 2 if rng.random() < 0.5 else -math.pi / 2)
        reach = house.width / 2 + width / 2 + rng.uniform(3.0, 4.5)
        centre = (house.centre[0] + reach * math.cos(side), house.centre[1] + reach * math.sin(side))
        radius = math.hypot(length, width) / 2 + 1.2
        inside = rect.x0 + radius < centre[0] < rect.x1 - radius and rect.y0 + radius < centre[1] < rect.y1 - radius
        clear = inside and plan.dry(centre, radius)
        clear = clear and all(math.dist(centre, b.centre) > radius + min(b.length, b.width) / 2 + 2.0 for b in houses)
        clear = clear and all(math.dist(centre, ground.frame.centre) > 2 * radius for ground in plan.grounds)
        clear = clear and all(math.dist(centre, vehicle.centre) > radius + 2.5 for vehicle in plan.vehicles[-len(houses) :])
        if clear:
            plan.grounds.append(SportsGround("swimming pool", None, Frame(house.heading, centre), length, width))
            plan.trees = [tree for tree in plan.trees if math.dist(tree.centre, centre) > radius + tree.radius]
