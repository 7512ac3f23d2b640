"""What the drawn world is made of: its categories, its colours and how its surfaces look from above."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

Colour = tuple[int, int, int]

# The order decides nothing; the names are the nouns that the instructions use.
SIMPLE_CATEGORIES = (
    "aircraft",
    "apron",
    "building",
    "car",
    "field",
    "forest",
    "lake",
    "parking lot",
    "river",
    "road",
    "runway",
    "taxiway",
    "tree",
    "truck",
)
CATEGORIES = (
    *SIMPLE_CATEGORIES,
    "basketball court",
    "beach",
    "bus",
    "football pitch",
    "pier",
    "running track",
    "sea",
    "ship",
    "storage tank",
    "swimming pool",
    "tennis court",
)

BUILDING_COLOURS: dict[str, Colour] = {
    "red": (172, 78, 58),
    "grey": (132, 134, 138),
    "white": (216, 216, 210),
    "brown": (120, 88, 66),
    "blue": (74, 108, 154),
}
CAR_COLOURS: dict[str, Colour] = {
    "white": (226, 228, 228),
    "black": (36, 38, 42),
    "red": (176, 32, 34),
    "blue": (38, 76, 158),
    "yellow": (226, 186, 44),
}
AIRCRAFT_COLOURS: dict[str, Colour] = {
    "white": (236, 238, 240),
    "grey": (146, 152, 160),
    "yellow": (228, 190, 62),
    "blue": (88, 132, 194),
}
FIELD_COLOURS: dict[str, Colour] = {
    "green": (104, 136, 70),
    "yellow": (200, 182, 112),
    "brown": (140, 108, 82),
}
BUS_COLOURS: dict[str, Colour] = {
    "red": (186, 44, 40),
    "yellow": (232, 188, 50),
    "white": (228, 230, 230),
    "blue": (48, 92, 168),
}
SHIP_COLOURS: dict[str, Colour] = {
    "white": (228, 230, 228),
    "red": (158, 52, 44),
    "blue": (46, 82, 138),
    "black": (46, 48, 54),
    "grey": (126, 132, 138),
}
TANK_COLOURS: dict[str, Colour] = {
    "white": (226, 226, 220),
    "grey": (158, 162, 164),
    "brown": (136, 104, 82),
}
COURT_COLOURS: dict[str, Colour] = {
    "green": (74, 122, 88),
    "blue": (64, 104, 158),
    "red": (172, 92, 68),
}

GRASS: Colour = (96, 112, 76)
LAWN: Colour = (102, 122, 78)
SAND: Colour = (186, 174, 142)
LAKE_WATER: Colour = (46, 82, 108)
RIVER_WATER: Colour = (66, 100, 106)
FOREST_GREEN: Colour = (52, 84, 44)
TREE_GREEN: Colour = (66, 98, 48)
ASPHALT: Colour = (104, 105, 109)
PARKING_ASPHALT: Colour = (124, 121, 118)
PAVEMENT: Colour = (172, 168, 160)
RUNWAY_ASPHALT: Colour = (76, 78, 84)
TAXIWAY_ASPHALT: Colour = (134, 134, 134)
CONCRETE: Colour = (188, 185, 176)
DIRT: Colour = (168, 146, 112)
SEA_WATER: Colour = (38, 84, 112)
POOL_WATER: Colour = (76, 176, 206)
FLOOD_WATER: Colour = (122, 108, 82)
FOAM: Colour = (176, 198, 204)
BEACH_SAND: Colour = (222, 206, 168)
ROCK: Colour = (138, 130, 120)
PLANKS: Colour = (150, 122, 94)
TURF: Colour = (86, 134, 66)
RUBBLE: Colour = (150, 142, 132)
ASH: Colour = (62, 58, 56)
WHITE_PAINT: Colour = (228, 228, 222)
YELLOW_PAINT: Colour = (224, 184, 58)
GLASS: Colour = (44, 54, 66)


@dataclasses.dataclass(frozen=True)
class Finish:
    """How a surface departs from its flat colour: every strength is a fraction of the colour's brightness."""

    grain: float = 0.025  # from pixel to pixel
    mottle: float = 0.04  # patches of several metres
    canopy: float = 0.0  # tree tops lit from the sun's side
    ripple: float = 0.0  # waves, and the fall of a shore to deep water
    furrow: float = 0.0  # parallel rows
    furrow_period: float = 4.0  # metres
    furrow_heading: float = 0.0  # radians in the layout's frame
    # What the seasons and the infrared see: built, grass, crop, leaf, soil, sand, roof, paved or water. No strength: it is not in `row`.
    material: str = "built"

    @functools.cached_property
    def row(self) -> tuple[float, ...]:
        """The strengths in the order of `STRENGTHS`."""
        return tuple(getattr(self, name) for name in STRENGTHS)


STRENGTHS = tuple(field.name for field in dataclasses.fields(Finish) if field.name != "material")

GRASSY = Finish(grain=0.05, mottle=0.13, material="grass")
SANDY = Finish(grain=0.05, mottle=0.13, material="sand")
EARTHY = Finish(grain=0.03, mottle=0.05, material="soil")
PAVED = Finish(grain=0.03, mottle=0.05, material="paved")
ROOF = Finish(grain=0.02, mottle=0.03, material="roof")
PAINTED = Finish(grain=0.015, mottle=0.0)
WATERY = Finish(grain=0.008, mottle=0.02, ripple=0.05, material="water")
SWELL = Finish(grain=0.01, mottle=0.05, ripple=0.07, material="water")
POOL = Finish(grain=0.01, mottle=0.03, material="water")
LAWNLIKE = Finish(grain=0.03, mottle=0.04, material="grass")
LEAFY = Finish(grain=0.05, mottle=0.10, canopy=0.34, material="leaf")
TREETOP = Finish(grain=0.08, mottle=0.0, canopy=0.12, material="leaf")


def lit(colour: Colour, factor: float) -> Colour:
    """`colour` made brighter or darker by `factor`."""
    return tuple(int(min(255, max(0, channel * factor))) for channel in colour)


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with a `share` from 0 to 1 of `other` in it."""
    return tuple(int(a + (b - a) * share) for a, b in zip(colour, other, strict=True))


def jittered(colour: Colour, rng: np.random.Generator, amount: float = 0.06) -> Colour:
    """`colour` with its brightness and each channel moved a little, so that no two neighbours are the same."""
    factors = rng.uniform(1 - amount, 1 + amount) * rng.uniform(1 - amount / 3, 1 + amount / 3, 3)
    return tuple(int(min(255, channel * factor)) for channel, factor in zip(colour, factors, strict=True))
