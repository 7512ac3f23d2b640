"""Parts of one thing: named, or meant by what they do."""

from __future__ import annotations

import math

from data_pipeline.grammar.explicit import named
from data_pipeline.grammar.facts import Fact, Facts
from data_pipeline.grammar.lexicon import PartWord
from data_pipeline.grammar.questions import PART_QUESTIONS
from data_pipeline.grammar.targets import Reference, Target


def parts(facts: Facts) -> list[Reference]:
    """All parts of things that can be told from others of their kind and are seen whole."""
    found = []
    for category, entry in facts.entries.items():
        if not entry.instances or not facts.clear(category) or not any(facts.has_parts(fact.thing.number) for fact in facts.of(category)):
            continue
        owners: dict[int, tuple[Fact, str]] = {}
        for fact, phrase, _ in named(facts, category):
            # The first name is the plainest; a part's phrase is long enough with it.
            owners.setdefault(fact.thing.number, (fact, phrase))
        for fact, owner in owners.values():
            if not fact.cut:
                found += _parts_of(facts, fact, owner)
    return found


def _parts_of(facts: Facts, fact: Fact, owner: str) -> list[Reference]:
    found = []
    for word in facts.parts:
        if not _askable(facts, fact, word):
            continue
        area = sum(facts.part_area(fact.thing.number, part) for part in word.numbers) / facts.pixels
        target = Target(word.noun, (fact.thing.number,), word.numbers, plural=word.plural)
        found.append(Reference("part", False, word.noun, f"the {word.noun} of {owner}", (target,), area))
        questions = PART_QUESTIONS.get((fact.thing.category, word.noun))
        if questions is not None:
            found.append(Reference("part", True, word.noun, questions.filled(owner=owner), (target,), area))
    return found


def _askable(facts: Facts, whole: Fact, word: PartWord) -> bool:
    if any(facts.part_area(whole.thing.number, part) < facts.smallest_target / 2 for part in word.numbers):
        return False
    if word.side is not None:
        # A thing's own left is the viewer's left only while its front points up.
        return whole.thing.heading is not None and math.cos(whole.thing.heading + math.pi / 2) > 0.6
    return True
