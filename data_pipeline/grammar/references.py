"""Every unambiguous way to refer to something in a scene, explicit or implicit, from whole categories down to parts of one thing."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from data_pipeline.grammar import language
from data_pipeline.grammar.facts import APART, LARGER, Fact, Facts, at_place
from data_pipeline.grammar.language import GROUPS, PARTS, PLURAL_PARTS, PLURALS

# Categories of which one thing can be told from another. Streets run into each other, so a single one is never meant.
_INSTANCES = ("aircraft", "building", "car", "field", "forest", "lake", "parking lot", "truck")
# Of these a scene has one object at most, which is asked for by its name alone.
_SINGLE = ("apron", "river", "runway", "taxiway")
_ANCHORS = ("aircraft", "lake", "river", "truck", "forest", "parking lot")


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
    words: str | language.Wordings
    targets: tuple[Target, ...]
    area: float
    place: str | None = None


def all_references(facts: Facts) -> list[Reference]:
    """All references that the scene allows, in a fixed order."""
    return [
        *_semantic(facts),
        *_implicit_concepts(facts),
        *_instances(facts),
        *_enumerations(facts),
        *_parts(facts),
    ]


def absent_categories(facts: Facts) -> list[str]:
    """Categories of which not one pixel is seen."""
    return [name for name in PLURALS if name != "tree" and not facts.of(name)]


def _numbers(things: list[Fact]) -> tuple[int, ...]:
    return tuple(fact.thing.number for fact in things)


def _share(facts: Facts, things: list[Fact]) -> float:
    return sum(fact.area for fact in things) / facts.pixels


def _semantic(facts: Facts) -> list[Reference]:
    found = []

    def add(category: str, phrase: str, noun: str, things: list[Fact], plural: bool) -> None:
        if sum(fact.area for fact in things) >= 2 * facts.smallest_target:
            target = Target(noun, _numbers(things), plural=plural)
            found.append(Reference("semantic", False, category, phrase, (target,), _share(facts, things)))

    for category, plural in PLURALS.items():
        things = facts.of(category)
        if category != "tree" and category not in _SINGLE:
            add(category, f"all {plural}", plural, things, True)
        for colour in sorted({fact.thing.colour for fact in things if fact.thing.colour}):
            alike = [fact for fact in things if fact.thing.colour == colour]
            if 1 < len(alike) < len(things):
                add(category, f"all {colour} {plural}", f"{colour} {plural}", alike, True)
    for noun, categories in GROUPS.items():
        things = facts.of(*categories)
        if noun in language.SINGULAR_GROUPS:
            add(categories[0], f"the {noun}", noun, things, False)
        elif len({fact.thing.category for fact in things}) > 1:
            add(categories[0], f"all {noun}", noun, things, True)
    return found


def _implicit_concepts(facts: Facts) -> list[Reference]:
    found = []
    for concept in language.CONCEPTS:
        things = facts.of(*concept.categories)
        if sum(fact.area for fact in things) < 2 * facts.smallest_target:
            continue
        plural = concept.noun in PLURALS.values() or concept.noun in ("vehicles",)
        if len(things) == 1 and concept.noun not in ("trees", "roads"):
            target = Target(things[0].thing.category, _numbers(things))
            found.append(Reference("instance", True, concept.categories[0], concept.questions, (target,), _share(facts, things)))
        else:
            target = Target(concept.noun, _numbers(things), plural=plural)
            found.append(Reference("semantic", True, concept.categories[0], concept.questions, (target,), _share(facts, things)))
        if concept.questions_at is None or len(things) < 2:
            continue
        for fact in things:
            if fact.area >= facts.smallest_target and facts.alone_at(fact, things):
                words = _filled(concept.questions_at, place=at_place(fact.place))
                target = Target(fact.thing.category, (fact.thing.number,))
                found.append(Reference("instance", True, fact.thing.category, words, (target,), _share(facts, [fact])))
    for category, questions in language.LARGEST_QUESTIONS.items():
        largest = _largest(facts, facts.of(category))
        if largest is not None and len(facts.of(category)) > 1:
            target = Target(f"largest {category}", (largest.thing.number,))
            found.append(Reference("instance", True, category, questions, (target,), _share(facts, [largest])))
    return found


def _filled(wordings: language.Wordings, **values: str) -> language.Wordings:
    return language.Wordings(tuple(w.format(**values) for w in wordings.train), tuple(w.format(**values) for w in wordings.held_out))


def _largest(facts: Facts, things: list[Fact]) -> Fact | None:
    """The one that is clearly the largest to the eye, or None."""
    if not things:
        return None
    order = sorted(things, key=lambda fact: -fact.area)
    if order[0].area < facts.smallest_target or (len(order) > 1 and order[0].area < LARGER * order[1].area):
        return None
    # A thing that the picture's edge cuts may be the largest in truth.
    if order[0].thing.category == "aircraft" and any(fact.cut for fact in order):
        return None
    return order[0]


def _instances(facts: Facts) -> list[Reference]:
    found = []
    for category in PLURALS:
        things = facts.of(category)
        if category in _INSTANCES + _SINGLE:
            found += [_instance(facts, fact, phrase, noun) for fact, phrase, noun in _named(facts, category, things)]
    return [reference for reference in found if reference is not None]


def _instance(facts: Facts, fact: Fact, phrase: str, noun: str) -> Reference | None:
    if fact.area < facts.smallest_target:
        return None
    target = Target(noun, (fact.thing.number,))
    return Reference("instance", False, fact.thing.category, phrase, (target,), _share(facts, [fact]), fact.place)


def _named(facts: Facts, category: str, things: list[Fact]) -> list[tuple[Fact, str, str]]:
    """(object, phrase, noun of the answer) for whatever can be told apart."""
    if len(things) == 1 and category in _INSTANCES + _SINGLE:
        return [(things[0], f"the {category}", category)]
    if len(things) < 2 or category not in _INSTANCES:
        return []
    named = []
    largest = _largest(facts, things)
    if largest is not None:
        named.append((largest, f"the largest {category}", f"largest {category}"))
    for fact in things:
        if fact.area < facts.smallest_target:
            continue
        colour = fact.thing.colour
        alike = [other for other in things if other.thing.colour == colour]
        if colour and len(alike) == 1:
            named.append((fact, f"the {colour} {category}", f"{colour} {category}"))
        elif colour and facts.alone_at(fact, alike):
            named.append((fact, f"the {colour} {category} {at_place(fact.place)}", f"{colour} {category}"))
        if facts.alone_at(fact, things):
            named.append((fact, f"the {category} {at_place(fact.place)}", category))
    named += _extremes(category, things) + _neighbours(facts, category, things)
    return named


def _extremes(category: str, things: list[Fact]) -> list[tuple[Fact, str, str]]:
    named = []
    for word, key in (("leftmost", lambda f: f.x), ("rightmost", lambda f: -f.x), ("uppermost", lambda f: f.y), ("lowest", lambda f: -f.y)):
        first, second = sorted(things, key=key)[:2]
        if key(second) - key(first) > APART:
            named.append((first, f"the {word} {category}", f"{word} {category}"))
    return named


def _neighbours(facts: Facts, category: str, things: list[Fact]) -> list[tuple[Fact, str, str]]:
    named = []
    for anchor_category in _ANCHORS:
        anchors = facts.of(anchor_category)
        if anchor_category == category or len(anchors) != 1 or anchors[0].area < facts.smallest_target:
            continue
        nearest = facts.nearest_to(things, anchors[0])
        if nearest is not None:
            named.append((nearest, f"the {category} nearest to the {anchor_category}", category))
    return named


def _enumerations(facts: Facts) -> list[Reference]:
    """Several things of one category, one mask each, in an order that the phrase gives."""
    found = []
    for category in ("aircraft", "building", "lake", "forest", "field"):
        things = facts.of(category)
        if any(fact.area < facts.smallest_target for fact in things):
            continue
        row = sorted(things, key=lambda fact: fact.x)
        if 2 <= len(row) <= 3 and all(b.x - a.x > APART for a, b in itertools.pairwise(row)):
            phrase = f"each {category} from left to right"
            targets = tuple(Target(category, (fact.thing.number,)) for fact in row)
            found.append(Reference("instance", False, category, phrase, targets, _share(facts, row)))
        by_size = sorted(things, key=lambda fact: -fact.area)[:3]
        if len(by_size) == 3 and by_size[0].area >= LARGER * by_size[1].area and by_size[1].area >= LARGER * by_size[2].area:
            phrase = f"the two largest {PLURALS[category]}, the larger one first"
            targets = tuple(Target(category, (fact.thing.number,)) for fact in by_size[:2])
            found.append(Reference("instance", False, category, phrase, targets, _share(facts, by_size[:2])))
    return found


def _parts(facts: Facts) -> list[Reference]:
    found = []
    planes = facts.of("aircraft")
    owners: dict[int, tuple[Fact, str]] = {}
    for fact, phrase, _ in _named(facts, "aircraft", planes):
        # The first name is the plainest; a part's phrase is long enough with it.
        owners.setdefault(fact.thing.number, (fact, phrase))
    for fact, owner in owners.values():
        if fact.cut:
            continue
        for name, (parts, questions) in PARTS.items():
            if not _askable(facts, fact, name, parts):
                continue
            area = sum(facts.part_area(fact.thing.number, part) for part in parts) / facts.pixels
            target = Target(name, (fact.thing.number,), parts, plural=name in PLURAL_PARTS)
            found.append(Reference("part", False, name, f"the {name} of {owner}", (target,), area))
            if questions is not None:
                found.append(Reference("part", True, name, _filled(questions, owner=owner), (target,), area))
    return found


def _askable(facts: Facts, plane: Fact, name: str, parts: tuple[int, ...]) -> bool:
    if any(facts.part_area(plane.thing.number, part) < facts.smallest_target / 2 for part in parts):
        return False
    if name.split()[0] in ("left", "right"):
        # The aircraft's own left is the viewer's left only while its nose points up.
        return math.cos(plane.thing.heading + math.pi / 2) > 0.6
    return True


def overlapping(a: Reference, b: Reference) -> bool:
    """Whether the two mean any pixel in common."""
    for one in a.targets:
        for other in b.targets:
            if set(one.numbers) & set(other.numbers) and (not one.parts or not other.parts or set(one.parts) & set(other.parts)):
                return True
    return False


def target_mask(facts: Facts, target: Target) -> np.ndarray:
    """The visible pixels of `target`: bool [h, w]."""
    chosen = np.zeros(len(facts.scene.objects) + 1, bool)
    chosen[list(target.numbers)] = True
    mask = chosen[facts.scene.object_map]
    if target.parts:
        wanted = np.zeros(len(language.PARTS) + 2, bool)
        wanted[list(target.parts)] = True
        mask &= wanted[facts.scene.part_map]
    return mask
