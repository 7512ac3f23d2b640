"""What a noun phrase or a question means: objects or parts of objects of the picture, and their masks."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipeline.grammar.facts import Fact, Facts
from data_pipeline.grammar.wordings import Wordings


@dataclasses.dataclass(frozen=True)
class Target:
    """One mask: the union of `numbers`, or of the `parts` of the one object. `noun` names it in the answer."""

    noun: str
    numbers: tuple[int, ...]
    parts: tuple[int, ...] = ()
    plural: bool = False


@dataclasses.dataclass(frozen=True)
class Reference:
    """A noun phrase (explicit) or the wordings of a question (implicit), and what it means.

    `area` is the share of the picture that the targets cover, `place` where a single target lies, if that can be said of it.
    """

    granularity: str  # semantic, instance or part
    implicit: bool
    category: str
    words: str | Wordings
    targets: tuple[Target, ...]
    area: float
    place: str | None = None


def numbers_of(things: list[Fact]) -> tuple[int, ...]:
    """The numbers of objects in the object map."""
    return tuple(fact.thing.number for fact in things)


def share_of(facts: Facts, things: list[Fact]) -> float:
    """The share of the picture that objects cover."""
    return sum(fact.area for fact in things) / facts.pixels


def overlapping(a: Reference, b: Reference) -> bool:
    """Whether the two mean any pixel in common."""
    for one in a.targets:
        for other in b.targets:
            if set(one.numbers) & set(other.numbers) and (not one.parts or not other.parts or set(one.parts) & set(other.parts)):
                return True
    return False


def target_mask(facts: Facts, target: Target) -> np.ndarray:
    """The visible pixels of `target`: bool [h, w]."""
    chosen = np.zeros(len(facts.image.objects) + 1, bool)
    chosen[list(target.numbers)] = True
    mask = chosen[facts.image.object_map]
    if target.parts:
        mask &= np.isin(facts.image.part_map, target.parts)
    return mask
