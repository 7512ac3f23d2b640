"""Instructions of drawn scenes: each means exactly one thing, says what it is, and belongs to its place along the four dimensions."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from data_pipeline.grammar import language
from data_pipeline.grammar.facts import Facts
from data_pipeline.grammar.lexicon import ENTRIES, SIMPLE_WORLD, regular_plural, with_article
from data_pipeline.grammar.questions import CONCEPTS, LARGEST_QUESTIONS, PART_QUESTIONS, STATE_QUESTIONS
from data_pipeline.grammar.records import (
    CELLS,
    EMPTY_FILE,
    TEST_FILES,
    TEST_SHARES,
    TRAIN_SHARES,
    Shares,
    make_empty_instruction,
    make_instructions,
)
from data_pipeline.grammar.references import absent_categories, all_references
from data_pipeline.grammar.targets import target_mask
from data_pipeline.synthetic.scene import draw_scene

# SHA-256 of the simple world's words below: the tiny preset's figures were measured on such rows.
WORDS_OF_THE_SIMPLE_WORLD = "28aee96445f22bf0b97f719520c6e27db3edab2fd213e154c6f55c0a8a84d090"


@pytest.fixture(scope="module")
def worlds():
    return [Facts(draw_scene((11, index), 128, world="simple")) for index in range(60)]


@pytest.fixture(scope="module")
def made(worlds):
    """(facts, instruction) of both mixtures."""
    found = []
    for number, facts in enumerate(worlds):
        for shares in (TRAIN_SHARES, TEST_SHARES):
            rng = np.random.default_rng((number, shares is TEST_SHARES))
            found += [(facts, shares, made) for made in make_instructions(facts, 4, shares, rng)]
    return found


def test_masks_of_different_instances_are_disjoint(worlds):
    for facts in worlds[:20]:
        for category in SIMPLE_WORLD:
            targets = {
                r.targets[0]
                for r in all_references(facts)
                if r.granularity == "instance" and r.category == category and len(r.targets) == 1
            }
            masks = {target.numbers: target_mask(facts, target) for target in targets}
            assert sum(mask.astype(int) for mask in masks.values()).max() <= 1 if masks else True


def test_each_seg_token_has_its_mask(made):
    assert len(made) > 300
    for facts, _, instruction in made:
        assert instruction.answer.count("[SEG]") == len(instruction.masks)
        for mask in instruction.masks:
            assert mask.shape == facts.image.object_map.shape
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
    for concept in CONCEPTS:
        pools = [concept.questions] + ([concept.questions_at] if concept.questions_at else [])
        for question in (question for pool in pools for question in pool.train + pool.held_out):
            for name in (concept.noun, *concept.categories):
                assert not re.search(rf"\b{name}\b", question), question
    for (category, state), questions in STATE_QUESTIONS.items():
        assert not any(category in question or state in question for question in questions.train + questions.held_out)
    for (_, name), questions in PART_QUESTIONS.items():
        assert not any(name.rstrip("s") in question for question in questions.train + questions.held_out)


def test_every_question_is_one_question_and_has_a_held_out_wording():
    pools = [c.questions for c in CONCEPTS] + [c.questions_at for c in CONCEPTS if c.questions_at]
    for pool in [*pools, *LARGEST_QUESTIONS.values(), *STATE_QUESTIONS.values(), *PART_QUESTIONS.values()]:
        assert pool.train
        assert pool.held_out
        assert not set(pool.train) & set(pool.held_out)
        assert all(q.count("?") == 1 and q.endswith("?") and q[0].isupper() for q in pool.train + pool.held_out)


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


def test_tags_and_files_say_the_same(made):
    for _, _, instruction in made:
        tags = instruction.tags
        assert set(tags) == {"granularity", "multiplicity", "reasoning", "language", "category"}
        if not instruction.masks:
            assert instruction.files == (EMPTY_FILE,)
            continue
        level = {"semantic": "test_sematic_level", "instance": "test_instance_level", "part": "test_part_level"}[tags["granularity"]]
        expected = {level, f"test_{tags['reasoning']}", f"test_{tags['language']}_query", f"test_{tags['multiplicity']}_cate"}
        assert set(instruction.files) == expected
        assert instruction.record("id", "a.png")["tags"] == tags


def test_an_empty_target_of_the_test_set_is_asked_for_in_its_own_words(worlds):
    texts = set()
    for number, facts in enumerate(worlds):
        instruction = make_empty_instruction(facts, TEST_SHARES, np.random.default_rng(number))
        assert instruction.masks == ()
        assert instruction.files == (EMPTY_FILE,)
        assert not facts.of(instruction.category)
        texts.add(instruction.description.split()[0])
    assert len(texts) > 4


def test_a_category_without_an_entry_gets_a_regular_plural():
    pairs = {"kiosk": "kiosks", "box": "boxes", "ferry": "ferries", "highway": "highways", "marsh": "marshes", "bus stop": "bus stops"}
    for singular, plural in pairs.items():
        assert regular_plural(singular) == plural


def test_articles():
    assert [with_article(ENTRIES[name]) for name in ("lake", "aircraft", "sea", "farmland")] == [
        "a lake",
        "an aircraft",
        "the sea",
        "farmland",
    ]


def test_the_words_of_the_simple_world_stay_as_they_are(worlds):
    texts = []
    for number, facts in enumerate(worlds):
        for shares in (TRAIN_SHARES, TEST_SHARES):
            made = make_instructions(facts, 4, shares, np.random.default_rng((number, 7)))
            texts += [(m.description, m.answer, m.cell.granularity, int(sum(mask.sum() for mask in m.masks))) for m in made]
    assert hashlib.sha256(repr(texts).encode()).hexdigest() == WORDS_OF_THE_SIMPLE_WORLD


def test_each_of_several_is_asked_for_in_the_singular(worlds):
    asked = 0
    for number, facts in enumerate(worlds):
        for seed in range(6):
            shares = Shares(instance=1, part=0, multiple=1, implicit=0, long=0, empty=0, held_out=0)
            for made in make_instructions(facts, 4, shares, np.random.default_rng((number, seed))):
                assert "Where are each" not in made.description
                asked += made.description.startswith("Where is each")
    assert asked
