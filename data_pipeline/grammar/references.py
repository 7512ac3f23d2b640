"""Every unambiguous way to refer to something in a picture, explicit or implicit, from whole categories down to parts of one thing."""

from __future__ import annotations

from data_pipeline.grammar.explicit import enumerations, instances, left_to_group, semantic
from data_pipeline.grammar.facts import Facts
from data_pipeline.grammar.implicit import implicit
from data_pipeline.grammar.lexicon import LOOKALIKES
from data_pipeline.grammar.parts import parts
from data_pipeline.grammar.targets import Reference


def all_references(facts: Facts) -> list[Reference]:
    """All references that the picture allows, in a fixed order."""
    return [*semantic(facts), *implicit(facts), *instances(facts), *enumerations(facts), *parts(facts)]


def absent_categories(facts: Facts) -> list[str]:
    """Labelled categories of which not one pixel is seen, nor anything that could be taken for one; none where pixels are unknown."""
    if not facts.complete:
        return []
    return [
        category
        for category in facts.entries
        if not facts.of(category, *LOOKALIKES.get(category, ())) and facts.clear(category) and not left_to_group(facts, category)
    ]
