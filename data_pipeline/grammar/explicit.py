"""Noun phrases for whole categories and for single things: each means exactly one thing, or one set of things, in its picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from data_pipeline.grammar.facts import APART, LARGER, Fact, Facts, at_place
from data_pipeline.grammar.lexicon import GROUPS, Entry, Group
from data_pipeline.grammar.targets import Reference, Target, numbers_of, share_of

# What stands out enough to say that something is near it.
_ANCHORS = (
    "aircraft",
    "lake",
    "river",
    "truck",
    "forest",
    "parking lot",
    "running track",
    "football pitch",
    "swimming pool",
    "pier",
    "plane",
)
# Of what a small picture holds few enough to count.
_ENUMERATED = ("aircraft", "building", "lake", "forest", "field", "ship", "storage tank", "plane")


def semantic(facts: Facts) -> list[Reference]:
    """Phrases for everything of a category, of a colour or state of it, or of a group of categories."""
    found: list[Reference] = []
    if not facts.complete:
        return found

    def add(category: str, phrase: str, noun: str, things: list[Fact], plural: bool) -> None:
        if sum(fact.area for fact in things) >= 2 * facts.smallest_target:
            target = Target(noun, numbers_of(things), plural=plural)
            found.append(Reference("semantic", False, category, phrase, (target,), share_of(facts, things)))

    for category, entry in facts.entries.items():
        things = facts.of(category)
        if not things or not facts.clear(category):
            continue
        if not (left_to_group(facts, category) or (entry.lone and len(things) < 2)):
            add(category, entry.every, entry.every_noun, things, entry.counted)
        for word in adjectives(things) if entry.counted else ():
            alike = [fact for fact in things if word in adjectives([fact])]
            if 1 < len(alike) < len(things):
                add(category, f"all {word} {entry.plural}", f"{word} {entry.plural}", alike, True)
    for group in GROUPS:
        things = facts.of(*group.members)
        if not _sayable(facts, group) or not things:
            continue
        first = next(member for member in group.members if member in facts.entries)
        if not group.plural:
            add(first, f"the {group.noun}", group.noun, things, False)
        elif len({fact.thing.category for fact in things}) > 1:
            add(first, f"all {group.noun}", group.noun, things, True)
    return found


def left_to_group(facts: Facts, category: str) -> bool:
    """Whether the noun of a category means other labelled categories as well, so that only the group may be called by it."""
    noun = facts.entries[category].every_noun
    return any(
        group.noun == noun and category in group.members and sum(member in facts.entries for member in group.members) > 1
        for group in GROUPS
    )


def _sayable(facts: Facts, group: Group) -> bool:
    known = sum(member in facts.entries for member in group.members)
    covered = any(all(category in facts.entries for category in cover) for cover in group.covers)
    return known > 1 and covered and not facts.of(*group.unless)


def adjectives(things: list[Fact]) -> list[str]:
    """The colours and then the states of things of one category."""
    colours = sorted({fact.thing.colour for fact in things if fact.thing.colour})
    return colours + sorted({fact.thing.state for fact in things if fact.thing.state})


def instances(facts: Facts) -> list[Reference]:
    """Phrases for one thing each."""
    found = []
    for category, entry in facts.entries.items():
        if entry.instances and facts.clear(category):
            for fact, phrase, noun in named(facts, category):
                if fact.area >= facts.smallest_target:
                    target = Target(noun, (fact.thing.number,))
                    found.append(Reference("instance", False, category, phrase, (target,), share_of(facts, [fact]), fact.place))
    return found


def named(facts: Facts, category: str) -> list[tuple[Fact, str, str]]:
    """(object, phrase, noun of the answer) for whatever can be told apart; the plainest phrase of an object comes first."""
    things, entry = facts.of(category), facts.entries[category]
    name = entry.singular
    if not facts.complete:
        # What is hidden might be larger, or nearer, or the second of its kind; and what touches it may go on there.
        alone = zip(things, facts.alone_at(things), strict=True)
        return [(fact, f"the {name} {at_place(fact.place)}", name) for fact, only in alone if only and not fact.cut]
    if len(things) == 1:
        return [(things[0], f"the {name}", name)]
    if not things:
        return []
    found = []
    biggest = largest(facts, things)
    if biggest is not None:
        found.append((biggest, f"the largest {name}", f"largest {name}"))
    found += _described(facts, entry, things)
    return found + _extremes(name, things) + _neighbours(facts, category, things)


def _described(facts: Facts, entry: Entry, things: list[Fact]) -> Iterator[tuple[Fact, str, str]]:
    """By colour or state, by place, or by both."""
    name = entry.singular
    alike = {word: [fact for fact in things if word in adjectives([fact])] for word in adjectives(things)}
    alone = {word: dict(zip(numbers_of(same), facts.alone_at(same), strict=True)) for word, same in alike.items()}
    alone_of_all = facts.alone_at(things)
    for fact, only in zip(things, alone_of_all, strict=True):
        if fact.area < facts.smallest_target:
            continue
        for word in adjectives([fact]):
            if len(alike[word]) == 1:
                yield fact, f"the {word} {name}", f"{word} {name}"
            elif alone[word][fact.thing.number]:
                yield fact, f"the {word} {name} {at_place(fact.place)}", f"{word} {name}"
        if only:
            yield fact, f"the {name} {at_place(fact.place)}", name


def largest(facts: Facts, things: list[Fact]) -> Fact | None:
    """The one that is clearly the largest to the eye, or None."""
    if not things or not facts.complete:
        return None
    order = sorted(things, key=lambda fact: -fact.area)
    if order[0].area < facts.smallest_target or (len(order) > 1 and order[0].area < LARGER * order[1].area):
        return None
    # A thing that the picture's edge cuts may be the largest in truth.
    if order[0].thing.category in ("aircraft", "plane", "ship") and any(fact.cut for fact in order):
        return None
    return order[0]


def _extremes(name: str, things: list[Fact]) -> list[tuple[Fact, str, str]]:
    found = []
    for word, key in (("leftmost", lambda f: f.x), ("rightmost", lambda f: -f.x), ("uppermost", lambda f: f.y), ("lowest", lambda f: -f.y)):
        first, second = sorted(things, key=key)[:2]
        if key(second) - key(first) > APART:
            found.append((first, f"the {word} {name}", f"{word} {name}"))
    return found


def _neighbours(facts: Facts, category: str, things: list[Fact]) -> list[tuple[Fact, str, str]]:
    found = []
    name = facts.entries[category].singular
    for anchor_category in _ANCHORS:
        anchors = facts.of(anchor_category)
        if anchor_category == category or len(anchors) != 1 or anchors[0].area < facts.smallest_target:
            continue
        if not facts.entries[anchor_category].instances or not facts.clear(anchor_category):
            continue
        nearest = facts.nearest_to(things, anchors[0])
        if nearest is not None:
            found.append((nearest, f"the {name} nearest to the {facts.entries[anchor_category].singular}", name))
    return found


def enumerations(facts: Facts) -> list[Reference]:
    """Several things of one category, one mask each, in an order that the phrase gives."""
    found = []
    for category in _ENUMERATED:
        things = facts.of(category)
        if not things or not facts.complete or any(fact.area < facts.smallest_target for fact in things):
            continue
        entry = facts.entries[category]
        if not entry.instances or not facts.clear(category):
            continue
        row = sorted(things, key=lambda fact: fact.x)
        if 2 <= len(row) <= 3 and all(b.x - a.x > APART for a, b in itertools.pairwise(row)):
            found.append(_enumeration(facts, category, f"each {entry.singular} from left to right", row))
        by_size = sorted(things, key=lambda fact: -fact.area)[:3]
        if len(by_size) == 3 and by_size[0].area >= LARGER * by_size[1].area and by_size[1].area >= LARGER * by_size[2].area:
            phrase = f"the two largest {entry.plural}, the larger one first"
            found.append(_enumeration(facts, category, phrase, by_size[:2]))
    return found


def _enumeration(facts: Facts, category: str, phrase: str, things: list[Fact]) -> Reference:
    targets = tuple(Target(facts.entries[category].singular, (fact.thing.number,)) for fact in things)
    return Reference("instance", False, category, phrase, targets, share_of(facts, things))
