"""Labelled pictures made of random boxes and discs, for whatever the drawn scenes never show: other categories, shapes and labels."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipeline.grammar.labels import AIRCRAFT_PARTS, LabelledObject
from data_pipeline.grammar.lexicon import ENTRIES

COLOURS = ("red", "green", "blue", "white", "yellow")
STATES = {"building": ("damaged", "intact"), "field": ("flooded", "intact"), "ship": ("moving", "moored")}


@dataclasses.dataclass(frozen=True)
class Labels:
    object_map: np.ndarray
    part_map: np.ndarray
    objects: tuple[LabelledObject, ...]


def random_labels(seed: int) -> Labels:
    """Up to 14 objects of up to five categories on a picture that is not square; later ones cover earlier ones."""
    rng = np.random.default_rng(seed)
    h, w = int(rng.integers(80, 200)), int(rng.integers(80, 200))
    object_map, part_map = np.zeros((h, w), np.int32), np.zeros((h, w), np.int32)
    categories = list(rng.choice(list(ENTRIES), 5, replace=False)) + (["aircraft"] if rng.random() < 0.5 else [])
    categories += list(rng.choice(list(STATES), 1)) if rng.random() < 0.6 else []
    objects = []
    with_states = rng.random() < 0.8
    for number in range(1, int(rng.integers(4, 15))):
        category = str(categories[int(rng.integers(len(categories)))])
        box_h, box_w = int(rng.integers(6, h // 2)), int(rng.integers(6, w // 2))
        top, left = int(rng.integers(-box_h // 2, h - box_h // 2)), int(rng.integers(-box_w // 2, w - box_w // 2))
        rows, columns = slice(max(0, top), top + box_h), slice(max(0, left), left + box_w)
        object_map[rows, columns] = number
        part_map[rows, columns] = 0
        if category == "aircraft":
            strips = np.array_split(np.arange(max(0, left), min(w, left + box_w)), len(AIRCRAFT_PARTS))
            for part, strip in enumerate(strips, 1):
                part_map[rows, strip] = part
        objects.append(
            LabelledObject(
                number,
                category,
                colour=str(rng.choice(COLOURS)) if ENTRIES[category].instances and rng.random() < 0.6 else None,
                heading=float(rng.uniform(0, 2 * np.pi)) if category == "aircraft" else None,
                state=str(rng.choice(STATES[category])) if with_states and category in STATES and rng.random() < 0.95 else None,
            )
        )
    return Labels(object_map, part_map, tuple(objects))
