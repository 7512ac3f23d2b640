"""Instructions of drawn scenes: each means exactly one thing, says what it is, and belongs to its place along the four dimensions."""

from __future__ import annotations

import re

import numpy as np
import pytest

from data_pipeline.grammar import language
from data_pipeline.grammar.facts import Facts, at_place
from data_pipeline.grammar.records import (
    CATEGORY_WEIGHTS,
    CELLS,
    TEST_FILES,
    TEST_SHARES,
    TRAIN_SHARES,
    Shares,
    make_instructions,
)
from data_pipeline.grammar.references import absent_categories, all_references, overlapping, target_mask
from data_pipeline.synthetic.palette import AIRCRAFT_COLOURS, BUILDING_COLOURS, CAR_COLOURS, CATEGORIES, FIELD_COLOURS
from data_pipeline.synthetic.scene import draw_scene

COLOURS = {*AIRCRAFT_COLOURS, *BUILDING_COLOURS, *CAR_COLOURS, *FIELD_COLOURS}
CATEGORY = "|".join(sorted(CATEGORIES, key=len, reverse=True))
PLACE = "|".join(re.escape(at_place(f"{place}")) for place in ("upper left", "upper right", "lower left", "lower right", "top", "bottom"))


@pytest.fixture(scope="module")
def worlds():
    return [Facts(draw_scene((11, index), 128)) for index in range(60)]


@pytest.fixture(scope="module")
def made(worlds):
    """(facts, instruction) of both mixtures."""
    found = []
    for number, facts in enumerate(worlds):
        for shares in (TRAIN_SHARES, TEST_SHARES):
            rng = np.random.default_rng((number, shares is TEST_SHARES))
            found += [(facts, shares, made) for made in make_instructions(facts, 4, shares, rng)]
    return found


def _instances(worlds):
    for facts in worlds:
        for reference in all_references(facts):
            if reference.granularity == "instance" and not reference.implicit and len(reference.targets) == 1:
                yield facts, reference, facts.facts[reference.targets[0].numbers[0]]


def test_a_plain_name_has_one_bearer(worlds):
    names = 0
    for facts, reference, fact in _instances(worlds):
        if match := re.fullmatch(rf"the ({CATEGORY})", reference.words):
            assert [f.thing.number for f in facts.of(match[1])] == [fact.thing.number]
            names += 1
    assert names > 30


def test_a_colour_alone_has_one_bearer(worlds):
    names = 0
    for facts, reference, fact in _instances(worlds):
        if match := re.fullmatch(rf"the ({'|'.join(sorted(COLOURS))}) ({CATEGORY})", reference.words):
            bearers = [f for f in facts.of(match[2]) if f.thing.colour == match[1]]
            assert bearers == [fact]
            names += 1
    assert names > 20


def test_the_largest_is_clearly_the_largest(worlds):
    names = 0
    for facts, reference, fact in _instances(worlds):
        if reference.words.startswith("the largest "):
            others = [f.area for f in facts.of(fact.thing.category) if f is not fact]
            assert fact.area > 1.25 * max(others)
            names += 1
    assert names > 10


def test_the_extreme_is_clearly_the_extreme(worlds):
    for facts, reference, fact in _instances(worlds):
        word = reference.words.split()[1]
        others = [f for f in facts.of(fact.thing.category) if f is not fact]
        if word == "leftmost":
            assert all(f.x > fact.x + 0.05 for f in others)
        elif word == "rightmost":
            assert all(f.x < fact.x - 0.05 for f in others)
        elif word == "uppermost":
            assert all(f.y > fact.y + 0.05 for f in others)
        elif word == "lowest":
            assert all(f.y < fact.y - 0.05 for f in others)


def test_a_place_has_one_bearer(worlds):
    names = 0
    for facts, reference, fact in _instances(worlds):
        match = re.fullmatch(rf"the (?:({'|'.join(sorted(COLOURS))}) )?({CATEGORY}) ({PLACE})", reference.words)
        if not match:
            continue
        colour, category, place = match.groups()
        left, right, upper, lower = (
            "left" in place,
            "right" in place,
            "upper" in place or "top" in place,
            "lower" in place or "bottom" in place,
        )

        def inside(f, left=left, right=right, upper=upper, lower=lower):
            column = f.x < 1 / 3 if left else f.x > 2 / 3 if right else 1 / 3 < f.x < 2 / 3
            return column and (f.y < 1 / 3 if upper else f.y > 2 / 3 if lower else False)

        bearers = [f for f in facts.of(category) if inside(f) and (colour is None or f.thing.colour == colour)]
        assert bearers == [fact]
        names += 1
    assert names > 20


def test_the_nearest_is_clearly_the_nearest(worlds):
    names = 0
    for facts, reference, fact in _instances(worlds):
        if match := re.fullmatch(rf"the ({CATEGORY}) nearest to the ({CATEGORY})", reference.words):
            (anchor,) = facts.of(match[2])
            rows, columns = np.nonzero(facts.scene.object_map == anchor.thing.number)
            pixels = (np.stack([columns, rows], axis=1) + 0.5) / facts.scene.object_map.shape[0]
            distance = {f.thing.number: np.sqrt(((pixels - (f.x, f.y)) ** 2).sum(1)).min() for f in facts.of(match[1])}
            own = distance.pop(fact.thing.number)
            assert own < min(distance.values()) - 0.01
            names += 1
    assert names > 5


def test_all_means_all(worlds):
    for facts in worlds:
        for reference in all_references(facts):
            if reference.granularity == "semantic" and not reference.implicit and reference.words.startswith("all "):
                noun = reference.words.removeprefix("all ")
                colour = noun.split()[0] if noun.split()[0] in COLOURS else None
                plural = noun.removeprefix(f"{colour} ") if colour else noun
                categories = language.GROUPS.get(plural) or [c for c, p in language.PLURALS.items() if p == plural]
                expected = {f.thing.number for f in facts.of(*categories) if colour is None or f.thing.colour == colour}
                assert set(reference.targets[0].numbers) == expected


def test_masks_of_different_instances_are_disjoint(worlds):
    for facts in worlds[:20]:
        for category in CATEGORIES:
            targets = {
                r.targets[0]
                for r in all_references(facts)
                if r.granularity == "instance" and r.category == category and len(r.targets) == 1
            }
            masks = {target.numbers: target_mask(facts, target) for target in targets}
            assert sum(mask.astype(int) for mask in masks.values()).max() <= 1 if masks else True


def test_every_target_can_be_seen(worlds):
    for facts in worlds:
        for reference in all_references(facts):
            for target in reference.targets:
                assert target_mask(facts, target).sum() >= facts.smallest_target / 2


def test_references_that_share_pixels_are_said_to_overlap(worlds):
    compared = 0
    for facts in worlds[:10]:
        single = [r for r in all_references(facts) if len(r.targets) == 1][:25]
        masks = [target_mask(facts, r.targets[0]) for r in single]
        for i, a in enumerate(single):
            for j, b in enumerate(single[:i]):
                assert overlapping(a, b) == bool((masks[i] & masks[j]).any())
                compared += 1
    assert compared > 500


def test_each_seg_token_has_its_mask(made):
    assert len(made) > 300
    for facts, _, instruction in made:
        assert instruction.answer.count("[SEG]") == len(instruction.masks)
        for mask in instruction.masks:
            assert mask.shape == facts.scene.object_map.shape
            assert mask.dtype == bool
            assert mask.any()
        assert "[SEG]" not in instruction.description
        assert "{" not in instruction.description + instruction.answer


def test_the_instructions_of_a_scene_differ(worlds):
    for number, facts in enumerate(worlds):
        texts = [made.description for made in make_instructions(facts, 4, TRAIN_SHARES, np.random.default_rng(number))]
        assert len(set(texts)) == len(texts) == 4


def test_cells_say_what_the_instruction_is(made):
    for _, _, instruction in made:
        cell, words = instruction.cell, instruction.description.split()
        if instruction.masks:
            assert cell.multiple == (len(instruction.masks) > 1)
        if cell.long:
            assert len(re.findall(r"[.?](?: |$)", instruction.description)) >= 2
            assert len(words) >= 14
        else:
            assert len(re.findall(r"[.?](?: |$)", instruction.description)) <= 1
            assert len(words) <= 40
        assert len(cell.files) == len(set(cell.files)) == 4


def test_implicit_questions_do_not_name_what_they_ask_for():
    for concept in language.CONCEPTS:
        pools = [concept.questions] + ([concept.questions_at] if concept.questions_at else [])
        for question in (question for pool in pools for question in pool.train + pool.held_out):
            for name in (concept.noun, *concept.categories):
                assert not re.search(rf"\b{name}\b", question), question
    for name, (_, questions) in language.PARTS.items():
        for question in questions.train + questions.held_out if questions else ():
            assert name.rstrip("s") not in question


def test_empty_targets_are_rare_true_and_only_for_training(made):
    empty = [(facts, shares, m) for facts, shares, m in made if not m.masks]
    assert 0 < len(empty) < 0.1 * len(made)
    for facts, shares, instruction in empty:
        assert shares is TRAIN_SHARES
        noun = re.fullmatch(r"There is no (.+) in this image\.", instruction.answer)[1]
        assert noun in absent_categories(facts)
        assert not facts.of(noun)


def test_held_out_wordings_are_the_tests_alone(made):
    held_out = [
        w.split("{")[0].strip() for w in language.SHORT_REQUESTS.held_out + language.LONG_REQUESTS.held_out + language.CONTEXTS.held_out
    ]
    assert all(held_out)
    used = {TRAIN_SHARES: 0, TEST_SHARES: 0}
    for _, shares, instruction in made:
        used[shares] += any(start in instruction.description for start in held_out)
    assert used[TRAIN_SHARES] == 0
    assert used[TEST_SHARES] > 0


def test_every_cell_of_the_four_dimensions_is_reached(worlds):
    reached = set()
    shares = Shares(instance=0.3, part=0.4, multiple=0.5, implicit=0.5, long=0.5, empty=0.0, held_out=0.0)
    for number, facts in enumerate(worlds):
        reached |= {made.cell for made in make_instructions(facts, 6, shares, np.random.default_rng(number))}
    assert reached == set(CELLS)
    assert len(CELLS) == 24
    assert len(TEST_FILES) == 9


def test_whole_categories_and_single_targets_lead(made):
    train = [m for _, shares, m in made if shares is TRAIN_SHARES]
    assert sum(m.cell.granularity == "semantic" for m in train) > 0.45 * len(train)
    assert sum(m.cell.multiple for m in train) < 0.25 * len(train)
    assert sum(m.cell.implicit for m in train) < 0.3 * len(train)


def test_every_reference_has_a_weight(worlds):
    assert {r.category for facts in worlds for r in all_references(facts)} <= set(CATEGORY_WEIGHTS)
