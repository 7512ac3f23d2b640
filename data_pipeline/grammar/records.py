"""Instructions, answers and masks of a picture as LaSeRS records, each with its place along the four dimensions.

The shares below are the one table that says how the drawn sets are mixed. They lean to what a small model learns first: whole categories
and large things, one target, named outright, in few words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import numpy as np

from data_pipeline.grammar import language
from data_pipeline.grammar.explicit import left_to_group
from data_pipeline.grammar.facts import Facts, at_place
from data_pipeline.grammar.lexicon import with_article
from data_pipeline.grammar.references import absent_categories, all_references
from data_pipeline.grammar.targets import Reference, Target, overlapping, target_mask
from segearth_r2_jax.raster import rle

GRANULARITIES = ("semantic", "instance", "part")


@dataclasses.dataclass(frozen=True)
class Shares:
    """How often a record is asked for with each property; a picture that does not allow it gives the nearest that it allows."""

    instance: float
    part: float
    multiple: float
    implicit: float
    long: float
    empty: float
    held_out: float

    @property
    def semantic(self) -> float:
        return 1 - self.instance - self.part


TRAIN_SHARES = Shares(instance=0.30, part=0.14, multiple=0.15, implicit=0.20, long=0.20, empty=0.03, held_out=0.0)
TEST_SHARES = Shares(instance=0.32, part=0.16, multiple=0.22, implicit=0.25, long=0.30, empty=0.0, held_out=0.15)

# How often a category or a part is asked for, relative to the others where a picture has them; 1 for those that are not here.
CATEGORY_WEIGHTS = {
    "apron": 0.6,
    "car": 0.2,
    "lake": 1.2,
    "parking lot": 0.6,
    "road": 0.9,
    "runway": 0.9,
    "taxiway": 0.4,
    "truck": 0.1,
    "bus": 0.3,
    "pier": 0.8,
    "engines": 0.6,
    "tail": 0.7,
    "left wing": 0.5,
    "right wing": 0.5,
    "left engine": 0.3,
    "right engine": 0.3,
}
# A target of this share of the picture, or larger, has its category's full weight; smaller ones in proportion, down to a tenth.
_FULL_WEIGHT_AREA = 0.02


@dataclasses.dataclass(frozen=True)
class Cell:
    """A place along the four dimensions of LaSeRS."""

    granularity: str
    multiple: bool
    implicit: bool
    long: bool

    @property
    def files(self) -> tuple[str, str, str, str]:
        """The published names of the four test files that hold its records."""
        level = {"semantic": "test_sematic_level", "instance": "test_instance_level", "part": "test_part_level"}[self.granularity]
        return (
            level,
            "test_multi_cate" if self.multiple else "test_single_cate",
            "test_implicit" if self.implicit else "test_explicit",
            "test_long_query" if self.long else "test_short_query",
        )


CELLS = tuple(Cell(g, m, i, q) for g in GRANULARITIES for m in (False, True) for i in (False, True) for q in (False, True))
TEST_FILES = tuple(sorted({file for cell in CELLS for file in cell.files}))
# A tenth file, beside the nine published ones: requests for what the picture does not show. Their answers have no mask.
EMPTY_FILE = "test_empty"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What is asked, what is answered, and the masks of the answer's [SEG] tokens in order: bool [h, w] each.

    `category`: the nouns of the categories or parts that it asks for, joined by commas. `targets`: what the masks show.
    """

    cell: Cell
    category: str
    description: str
    answer: str
    targets: tuple[Target, ...]
    masks: tuple[np.ndarray, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The test files that hold it: one for each of the four dimensions, or the one for empty targets."""
        return self.cell.files if self.masks else (EMPTY_FILE,)

    @property
    def tags(self) -> dict[str, str]:
        """Its place along the four dimensions of LaSeRS, and its category."""
        return {
            "granularity": self.cell.granularity,
            "multiplicity": "multi" if self.cell.multiple else "single",
            "reasoning": "implicit" if self.cell.implicit else "explicit",
            "language": "long" if self.cell.long else "short",
            "category": self.category,
        }

    def record(self, identifier: str, image_name: str) -> dict[str, Any]:
        """The record of the annotation file."""
        return {
            "id": identifier,
            "image_name": image_name,
            "description": self.description,
            "answer": self.answer,
            "mask": [rle.encode(mask) for mask in self.masks],
            "tags": self.tags,
        }


def make_instructions(
    facts: Facts, count: int, shares: Shares, rng: np.random.Generator, first_cell: Cell | None = None, distinct: bool = False
) -> list[Instruction]:
    """Up to `count` different instructions; the first is of `first_cell` where the picture allows it.

    Where `distinct`, they also differ in the cell or in the targets, so that a picture with little to ask for gives fewer of them.
    """
    references = all_references(facts)
    made: dict[Hashable, Instruction] = {}
    for attempt in range(3 * count):
        if len(made) == count:
            break
        if rng.random() < shares.empty and (absent := absent_categories(facts)):
            instruction = _empty(facts, absent[int(rng.integers(len(absent)))], shares, rng)
        else:
            wish = first_cell if first_cell is not None and attempt == 0 else _draw_cell(shares, rng)
            instruction = _fulfil(facts, references, wish, shares, rng)
        if instruction is not None:
            question = (instruction.cell, instruction.category, instruction.targets) if distinct else instruction.description
            made.setdefault(question, instruction)
    return list(made.values())


def make_empty_instruction(facts: Facts, shares: Shares, rng: np.random.Generator) -> Instruction | None:
    """A request for a category that the picture does not show; None where nothing is known to be absent."""
    absent = absent_categories(facts)
    return _empty(facts, absent[int(rng.integers(len(absent)))], shares, rng) if absent else None


def _draw_cell(shares: Shares, rng: np.random.Generator) -> Cell:
    granularity = GRANULARITIES[int(rng.choice(3, p=(shares.semantic, shares.instance, shares.part)))]
    multiple, implicit, long = (bool(rng.random() < share) for share in (shares.multiple, shares.implicit, shares.long))
    return Cell(granularity, multiple, implicit, long)


def _fulfil(facts: Facts, references: list[Reference], wish: Cell, shares: Shares, rng: np.random.Generator) -> Instruction | None:
    """An instruction of the cell `wish`, or of one that asks less and that the scene allows."""
    for granularity, multiple, implicit in (
        (wish.granularity, wish.multiple, wish.implicit),
        (wish.granularity, wish.multiple, False),
        (wish.granularity, False, False),
        ("instance", False, False),
        ("semantic", False, False),
    ):
        pool = [r for r in references if r.granularity == granularity and r.implicit == implicit]
        chosen = _choose(pool, multiple, rng)
        if chosen:
            return _instruction(facts, chosen, Cell(granularity, multiple, implicit, wish.long), shares, rng)
    return None


def _choose(pool: list[Reference], multiple: bool, rng: np.random.Generator) -> list[Reference]:
    """References with one target, or with several between them; empty if there are none."""
    singles = [r for r in pool if len(r.targets) == 1]
    if not multiple:
        return [_weighted(singles, rng)] if singles else []
    lists = [r for r in pool if len(r.targets) > 1]
    if lists and rng.random() < 0.35:
        return [_weighted(lists, rng)]
    chosen: list[Reference] = []
    rest = singles
    for _ in range(3 if rng.random() < 0.15 else 2):
        if not rest:
            break
        chosen.append(_weighted(rest, rng))
        rest = [r for r in rest if not any(overlapping(r, c) or r.category == c.category for c in chosen)]
    if len(chosen) > 1:
        return chosen
    return [_weighted(lists, rng)] if lists else []


def _weighted(pool: list[Reference], rng: np.random.Generator) -> Reference:
    # A category counts once, however many ways there are to say it in this scene.
    counts: dict[str, int] = {}
    for reference in pool:
        counts[reference.category] = counts.get(reference.category, 0) + 1
    weights = np.array(
        [CATEGORY_WEIGHTS.get(r.category, 1.0) / counts[r.category] * float(np.clip(r.area / _FULL_WEIGHT_AREA, 0.1, 1.0)) for r in pool]
    )
    return pool[int(rng.choice(len(pool), p=weights / weights.sum()))]


def _categories(facts: Facts, reference: Reference) -> list[str]:
    """The parts that a reference means, or the categories of the things: "the water" is a lake, a river, or both."""
    if reference.granularity == "part":
        return [reference.category]
    numbers = {number for target in reference.targets for number in target.numbers}
    return sorted({facts.facts[number].thing.category for number in numbers})


def _empty(facts: Facts, category: str, shares: Shares, rng: np.random.Generator) -> Instruction:
    entry = facts.entries[category]
    description = _short_request(entry.every, entry.counted, shares, rng)
    return Instruction(
        Cell("semantic", False, False, False), category, description, language.EMPTY_ANSWER.format(noun=entry.singular), (), ()
    )


def _instruction(facts: Facts, chosen: list[Reference], cell: Cell, shares: Shares, rng: np.random.Generator) -> Instruction:
    targets = [target for reference in chosen for target in reference.targets]
    nouns = [target.noun for target in targets]
    plural = len(targets) > 1 or targets[0].plural
    if cell.implicit:
        question = language.joined_questions([r.words.choose(rng, shares.held_out) for r in chosen])
        description = _long_question(facts, question, shares, rng) if cell.long else question
        answer = language.named_answer(nouns, plural)
    else:
        phrase = language.joined([r.words for r in chosen])
        if cell.long:
            place = at_place(chosen[0].place) if len(targets) == 1 and chosen[0].place else None
            description = _long_request(facts, phrase, place, shares, rng)
            answer = language.full_answer(nouns, plural, place)
        else:
            description = _short_request(phrase, plural, shares, rng)
            answer = language.named_answer(nouns, plural)
    category = ", ".join(dict.fromkeys(name for reference in chosen for name in _categories(facts, reference)))
    return Instruction(cell, category, description, answer, tuple(targets), tuple(target_mask(facts, target) for target in targets))


def _short_request(phrase: str, plural: bool, shares: Shares, rng: np.random.Generator) -> str:
    wording = language.SHORT_REQUESTS.choose(rng, shares.held_out)
    if plural and wording == "Where is {phrase}?" and not phrase.startswith("each "):
        wording = language.PLURAL_QUESTION
    return wording.format(phrase=phrase)


def _context(facts: Facts, shares: Shares, rng: np.random.Generator) -> str:
    """A sentence that says what the picture shows: its two or three largest categories."""
    sizes = {
        category: sum(fact.area for fact in things)
        for category, things in facts.by_category.items()
        if not left_to_group(facts, category) and sum(fact.area for fact in things) > 0.01 * facts.pixels
    }
    names = sorted(sizes, key=lambda category: -sizes[category])[: 2 + int(rng.integers(2))]
    entries = [(facts.entries[name], len(facts.of(name))) for name in names]
    shown = [entry.plural if entry.counted and (count > 1 or not entry.instances) else with_article(entry) for entry, count in entries]
    context = language.CONTEXTS.choose(rng, shares.held_out)
    return context.format(scene=language.joined(shown)) if shown else language.PLAIN_CONTEXT


def _long_request(facts: Facts, phrase: str, place: str | None, shares: Shares, rng: np.random.Generator) -> str:
    request = language.LONG_REQUESTS.choose(rng, shares.held_out).format(phrase=phrase)
    sentences = [_context(facts, shares, rng), request]
    if place is not None and place not in phrase:
        sentences.append(language.PLACE_HINTS.choose(rng, shares.held_out).format(place=place))
    return " ".join(sentences)


def _long_question(facts: Facts, question: str, shares: Shares, rng: np.random.Generator) -> str:
    return f"{_context(facts, shares, rng)} {language.LONG_QUESTIONS.choose(rng, shares.held_out).format(question=question)}"
