"""Questions that a picture answers in exactly one way, by use, by size or by state."""

from __future__ import annotations

from data_pipeline.grammar.explicit import largest
from data_pipeline.grammar.facts import Facts, at_place
from data_pipeline.grammar.questions import CONCEPTS, LARGEST_QUESTIONS, STATE_QUESTIONS, Concept
from data_pipeline.grammar.targets import Reference, Target, numbers_of, share_of


def implicit(facts: Facts) -> list[Reference]:
    """All questions that do not name what they ask for."""
    found = []
    for concept in CONCEPTS:
        if _answerable(facts, concept):
            found += _by_use(facts, concept)
    found += _by_size(facts)
    found += _by_state(facts)
    return found


def _answerable(facts: Facts, concept: Concept) -> bool:
    """Whether all that could answer is labelled, and nothing else is seen that might."""
    covers = concept.covers or (concept.categories,)
    things = facts.of(*concept.categories)
    return (
        any(all(category in facts.entries for category in cover) for cover in covers)
        and not facts.of(*concept.unless)
        and not any(fact.thing.state in concept.unless_states for fact in things)
        and sum(fact.area for fact in things) >= 2 * facts.smallest_target
    )


def _by_use(facts: Facts, concept: Concept) -> list[Reference]:
    found = []
    things = facts.of(*concept.categories)
    first = next(category for category in concept.categories if category in facts.entries)
    entries = [facts.entries[fact.thing.category] for fact in things]
    if facts.complete:
        if len(things) == 1 and not concept.merged and entries[0].instances:
            target = Target(entries[0].singular, numbers_of(things))
            found.append(Reference("instance", True, first, concept.questions, (target,), share_of(facts, things)))
        else:
            # A single region of one category, that others could join, is called by its own name.
            noun = concept.noun if len(things) > 1 or concept.merged else entries[0].every_noun
            plural = concept.counted and any(entry.counted for entry in entries)
            target = Target(noun, numbers_of(things), plural=plural)
            found.append(Reference("semantic", True, first, concept.questions, (target,), share_of(facts, things)))
    if concept.questions_at is None or len(things) < 2 or not all(entry.instances for entry in entries):
        return found
    for fact, alone in zip(things, facts.alone_at(things), strict=True):
        if fact.area >= facts.smallest_target and alone and (facts.complete or not fact.cut):
            words = concept.questions_at.filled(place=at_place(fact.place))
            target = Target(facts.entries[fact.thing.category].singular, (fact.thing.number,))
            found.append(Reference("instance", True, fact.thing.category, words, (target,), share_of(facts, [fact])))
    return found


def _by_size(facts: Facts) -> list[Reference]:
    found = []
    for category, questions in LARGEST_QUESTIONS.items():
        things = facts.of(category)
        if len(things) < 2 or not facts.entries[category].instances or not facts.clear(category):
            continue
        biggest = largest(facts, things)
        if biggest is not None:
            target = Target(f"largest {facts.entries[category].singular}", (biggest.thing.number,))
            found.append(Reference("instance", True, category, questions, (target,), share_of(facts, [biggest])))
    return found


def _by_state(facts: Facts) -> list[Reference]:
    found = []
    for (category, state), questions in STATE_QUESTIONS.items():
        things = facts.of(category)
        alike = [fact for fact in things if fact.thing.state == state]
        if not facts.complete or not facts.clear(category):
            continue
        if sum(fact.area for fact in alike) < 2 * facts.smallest_target:
            continue
        entry = facts.entries[category]
        if len(alike) == 1:
            granularity, target = "instance", Target(f"{state} {entry.singular}", numbers_of(alike))
        else:
            granularity, target = "semantic", Target(f"{state} {entry.plural}", numbers_of(alike), plural=True)
        found.append(Reference(granularity, True, category, questions, (target,), share_of(facts, alike)))
    return found
