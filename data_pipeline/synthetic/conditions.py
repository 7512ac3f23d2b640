"""When and with what the picture was taken: season, height of the sun, haze, and the camera with its bands and faults."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.palette import Colour, Finish, mixed
from data_pipeline.synthetic.town import pick

SEASONS = (("spring", 0.24), ("summer", 0.36), ("autumn", 0.22), ("winter", 0.18))
BANDS = (("colour", 0.9), ("panchromatic", 0.05), ("false colour", 0.05))

# What a season mixes into grass, crops and leaves: (colour, share).
_TURNED: dict[str, dict[str, tuple[Colour, float]]] = {
    "spring": {"grass": ((104, 142, 66), 0.4), "crop": ((112, 140, 72), 0.12)},
    "summer": {"grass": ((138, 132, 84), 0.0)},
    "autumn": {"grass": ((138, 120, 72), 0.4), "crop": ((138, 112, 80), 0.18)},
    "winter": {"grass": ((126, 116, 92), 0.5), "crop": ((124, 108, 88), 0.2)},
}
_TREES: dict[str, tuple[Colour, ...]] = {
    "spring": ((104, 138, 62), (84, 120, 54), (206, 178, 176), (92, 128, 58)),
    "summer": (palette.TREE_GREEN,),
    "autumn": ((182, 110, 44), (196, 152, 58), (150, 66, 42), (96, 104, 54), (172, 128, 50)),
    "winter": ((112, 98, 84), (98, 86, 74), (124, 110, 94), (46, 68, 44)),
}
_FORESTS: dict[str, tuple[Colour, ...]] = {
    "spring": ((72, 108, 48), (92, 126, 56), (58, 92, 46)),
    "summer": (palette.FOREST_GREEN,),
    "autumn": ((122, 92, 46), (176, 110, 46), (190, 148, 56), (72, 86, 44), (142, 66, 42)),
    "winter": ((88, 80, 68), (104, 92, 80), (52, 72, 48)),
}
_SNOW: Colour = (222, 227, 236)
# How much of each material a fresh cover of snow hides; roads, water and machines are kept clear.
_SNOW_SHARES = {"grass": 0.9, "crop": 0.66, "soil": 0.75, "sand": 0.15, "leaf": 0.3, "roof": 0.82, "paved": 0.12}
# Near infrared of each material, as (share of the visible brightness, what is added): leaves are bright, water is black.
_INFRARED = {"grass": (0.55, 112), "crop": (0.6, 88), "leaf": (0.7, 108), "water": (0.14, 0), "soil": (1.05, 12), "sand": (1.05, 12)}


@dataclasses.dataclass(frozen=True)
class Conditions:
    """One taking of a picture.

    `snow` is the cover from 0 to 1, `slant` the metres of shadow per metre of height (1 / tan of the sun's height), `haze` a share of
    veiling light, `blur` the standard deviation in pixels of the optics' point spread, `noise` that of the sensor in grey levels,
    `vignette` the light lost in the corners, `jpeg` the quality at which the picture was once stored (None: never).
    """

    season: str = "summer"
    snow: float = 0.0
    slant: float = 0.7
    haze: float = 0.03
    bands: str = "colour"
    noise: float = 1.5
    blur: float = 0.0
    vignette: float = 0.0
    jpeg: int | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Conditions:
        """Any season, any hour at which pictures are taken, cameras from good to poor."""
        season = pick(SEASONS, rng)
        snow = float(rng.uniform(0.55, 1.0)) if season == "winter" and rng.random() < 0.5 else 0.0
        lowest = {"winter": 1.0, "summer": 0.3}.get(season, 0.5)
        return cls(
            season=season,
            snow=snow,
            slant=float(rng.uniform(lowest, lowest + 0.9)),
            haze=float(0.3 * rng.random() ** 3),
            bands=pick(BANDS, rng),
            noise=float(rng.uniform(0.6, 2.2) if rng.random() < 0.75 else rng.uniform(2.2, 7.0)),
            blur=float(rng.uniform(0.4, 0.9)) if rng.random() < 0.35 else 0.0,
            vignette=float(rng.uniform(0.05, 0.25)) if rng.random() < 0.15 else 0.0,
            jpeg=int(rng.integers(45, 90)) if rng.random() < 0.3 else None,
        )

    def shows_colour_of(self, category: str) -> bool:
        """Whether things of `category` look the colour that they are: not without colour bands, nor roofs, land and courts under snow."""
        return self.bands == "colour" and not (self.snow and category in _COVERED)

    @property
    def bathing(self) -> bool:
        """Whether people lie on the beach."""
        return self.season in ("spring", "summer")

    def look(self, colour: Colour, finish: Finish) -> tuple[Colour, Finish]:
        """Colour and finish that a surface of `colour` and `finish` has in the picture."""
        turned = _TURNED[self.season].get(finish.material)
        if turned is not None:
            colour = mixed(colour, *turned)
        if self.snow:
            cover = self.snow * _SNOW_SHARES.get(finish.material, 0.0)
            colour, finish = mixed(colour, _SNOW, cover), _snowed(finish, cover)
        if self.bands == "false colour":
            share, more = _INFRARED.get(finish.material, (1.0, 0))
            # What is red to the eye is bright beyond it too.
            brightness = max(colour[0], sum(colour) / 3)
            frozen = self.snow * _SNOW_SHARES.get(finish.material, 0.0)
            near_infrared = brightness * (share + (1 - share) * frozen) + more * (1 - frozen)
            colour = (int(min(255, near_infrared)), colour[0], colour[1])
        return colour, finish

    @property
    def trees(self) -> tuple[Colour, ...]:
        """The colours of single trees."""
        return _TREES[self.season]

    @property
    def forest(self) -> tuple[Colour, ...]:
        """The colours of a forest, the commonest first."""
        return _FORESTS[self.season]


@functools.lru_cache(maxsize=256)
def _snowed(finish: Finish, cover: float) -> Finish:
    """Snow is smoother than what it covers."""
    return dataclasses.replace(finish, grain=finish.grain * (1 - 0.5 * cover), mottle=finish.mottle * (1 - 0.7 * cover))


_COVERED = ("building", "field", "tennis court", "basketball court", "running track", "storage tank")
