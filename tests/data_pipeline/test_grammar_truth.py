"""Whatever the grammar says is true: every phrase, answer and context is read back and compared with the labels' pixels."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from labelled_examples import Labels, random_labels
from phrase_reader import PLACES, Reader

from data_pipeline.grammar.facts import Facts
from data_pipeline.grammar.labels import LabelledObject
from data_pipeline.grammar.lexicon import DRAWN_CATEGORIES, ENTRIES, entries_of
from data_pipeline.grammar.records import TEST_SHARES, TRAIN_SHARES, make_instructions
from data_pipeline.grammar.references import absent_categories, all_references
from data_pipeline.grammar.targets import overlapping, target_mask
from data_pipeline.synthetic.scene import draw_scene


@pytest.fixture(scope="module")
def worlds():
    """Labelled pictures with their readers: drawn scenes of both worlds, and random boxes of every category of the table."""
    found = []
    for index in range(24):
        for world in ("simple", "full"):
            scene = draw_scene((11, index), 128, world=world, held_out=world == "full" and index % 2 == 1)
            found.append((Facts(scene, entries_of(DRAWN_CATEGORIES[world])), Reader(scene)))
    for image in map(random_labels, range(150)):
        found.append((Facts(image), Reader(image)))
    return found


@pytest.fixture(scope="module")
def made(worlds):
    """(reader, instruction) of both mixtures."""
    found = []
    for number, (facts, reader) in enumerate(worlds):
        for shares in (TRAIN_SHARES, TEST_SHARES):
            rng = np.random.default_rng((number, shares is TEST_SHARES))
            found += [(reader, made) for made in make_instructions(facts, 4, shares, rng)]
    return found


def test_every_explicit_phrase_means_what_its_masks_show(worlds):
    read = {"semantic": 0, "instance": 0}
    for facts, reader in worlds:
        for reference in all_references(facts):
            if not reference.implicit and reference.granularity != "part":
                assert reader.meaning(reference.words) == [set(target.numbers) for target in reference.targets], reference.words
                read[reference.granularity] += 1
    assert min(read.values()) > 300


def test_all_of_a_group_is_every_category_that_its_noun_means(worlds):
    said = 0
    for facts, reader in worlds:
        for reference in all_references(facts):
            if reference.words == "all vehicles":
                vehicles = ("car", "truck", "bus", "van", "small vehicle", "large vehicle", "vehicle")
                assert set(reference.targets[0].numbers) == set(reader.of(vehicles))
                said += 1
    assert said


def test_a_part_belongs_to_the_one_that_is_named(worlds):
    read = 0
    for facts, reader in worlds:
        for reference in all_references(facts):
            if reference.granularity == "part" and not reference.implicit:
                owner, parts = reader.part(reference.words)
                (target,) = reference.targets
                assert (target.numbers, target.parts) == ((owner,), parts)
                expected = reader.masks[owner] & np.isin(reader.image.part_map, parts)
                assert (target_mask(facts, target) == expected).all()
                if " left " in reference.words or "right" in reference.words.split(" of ")[0]:
                    # Nose up, so that the viewer's left is the aircraft's own.
                    assert math.sin(reader.things[owner].heading) < -0.5
                read += 1
    assert read > 100


def test_a_question_about_a_place_has_one_answer_there(worlds):
    read = 0
    for facts, reader in worlds:
        for reference in all_references(facts):
            if reference.implicit and reference.granularity == "instance":
                for question in reference.words.train + reference.words.held_out:
                    place = next((place for place in PLACES if f" {place} " in question), None)
                    if place is not None:
                        (number,) = reference.targets[0].numbers
                        alike = reader.of(reader.noun_categories(reference.targets[0].noun))
                        assert [n for n in alike if reader.inside(n, place)] == [number]
                        read += 1
    assert read > 50


def test_questions_about_damage_mean_all_that_is_damaged(worlds):
    read = 0
    for facts, reader in worlds:
        for reference in all_references(facts):
            noun = reference.targets[0].noun
            if reference.implicit and (match := re.match(r"(damaged|flooded|moving|moored) ", noun)):
                assert set(reference.targets[0].numbers) == set(reader.of(reader.noun_categories(noun), match[1]))
                read += 1
    assert read > 10


def test_the_nouns_of_an_answer_name_what_its_masks_cover(made):
    nouns = 0
    for reader, instruction in made:
        names = re.findall(r"<p>(.*?)</p>\[SEG\]", instruction.answer)
        assert len(names) == len(instruction.masks) == instruction.answer.count("[SEG]")
        for name, mask in zip(names, instruction.masks, strict=True):
            covered = {reader.things[n].category for n in np.unique(reader.image.object_map[mask])}
            assert covered <= reader.noun_categories(name), (name, covered)
            nouns += 1
    assert nouns > 800


def test_the_context_names_what_is_there_and_counts_it(made):
    contexts = 0
    for reader, instruction in made:
        match = re.search(r"(?:This aerial image shows|from above and shows|this place has) (.*?)\.", instruction.description)
        if not match:
            continue
        for name in re.split(r", | and ", match[1]):
            one = re.fullmatch(r"(?:an?|the) (.+)", name)
            numbers = reader.of(reader.noun_categories(one[1] if one else name))
            assert numbers
            assert sum(reader.masks[n].sum() for n in numbers) > 0.01 * reader.h * reader.w
            if one and ENTRIES[one[1]].counted:
                assert len(numbers) == 1
                assert name.startswith("an ") == (one[1][0] in "aeiou")
        contexts += 1
    assert contexts > 100


def test_the_hint_of_a_place_is_true(made):
    hints = 0
    for reader, instruction in made:
        if match := re.search(rf"(?:It lies|Look) ({'|'.join(PLACES)}) of the image\.", instruction.description):
            (number,) = set(np.unique(reader.image.object_map[instruction.masks[0]]))
            assert reader.inside(number, match[1])
            assert reader.reaches(number, match[1]) > 0.5
            assert f"is {match[1]}." in instruction.answer
            hints += 1
    assert hints > 20


def test_there_is_no_means_that_nothing_of_it_is_seen(worlds):
    absent = 0
    for facts, reader in worlds:
        for category in absent_categories(facts):
            assert not reader.of({category})
            if category == "field":
                assert not reader.of({"football pitch"})
            if category == "car":
                assert not reader.of({"vehicle", "small vehicle"})
            absent += 1
    assert absent > 500


def test_references_that_share_pixels_are_said_to_overlap(worlds):
    compared = 0
    for facts, _ in worlds[::12]:
        single = [r for r in all_references(facts) if len(r.targets) == 1][:25]
        masks = [target_mask(facts, r.targets[0]) for r in single]
        for i, a in enumerate(single):
            for j, b in enumerate(single[:i]):
                assert overlapping(a, b) == bool((masks[i] & masks[j]).any())
                compared += 1
    assert compared > 500


def test_every_target_can_be_seen(worlds):
    for facts, _ in worlds:
        for reference in all_references(facts):
            for target in reference.targets:
                assert target_mask(facts, target).sum() >= facts.smallest_target / 2


@pytest.mark.parametrize("seed", range(40))
def test_where_pixels_are_unknown_nothing_is_said_of_the_whole_picture(seed):
    image = random_labels(seed)
    h, w = image.object_map.shape
    unknown = np.zeros((h, w), bool)
    unknown[: h // 4, : w // 4] = True
    image.object_map[unknown] = 0
    facts, reader = Facts(image, unknown=unknown), Reader(image)
    assert absent_categories(facts) == []
    for reference in all_references(facts):
        assert reference.granularity != "semantic"
        words = (reference.words,) if isinstance(reference.words, str) else reference.words.train + reference.words.held_out
        for text in words:
            place = next((place for place in PLACES if place in text), None)
            assert place not in (None, "in the upper left"), text
            (number,) = reference.targets[0].numbers
            assert reader.inside(number, place)
            # It does not go on where nothing is known.
            rows, columns = reader.places[number].T
            assert not ((rows <= h // 4) & (columns <= w // 4)).any()


def test_a_group_is_not_spoken_of_where_a_member_may_stand_unlabelled():
    object_map = np.zeros((60, 100), np.int32)
    object_map[5:20, 5:40], object_map[30:50, 50:90] = 1, 2
    image = Labels(object_map, np.zeros_like(object_map), (LabelledObject(1, "car"), LabelledObject(2, "bus")))
    known = Facts(image, entries_of(["car", "bus", "truck"]))
    assert "all vehicles" in [r.words for r in all_references(known)]
    assert absent_categories(known) == ["truck"]
    # A truck could stand there without being labelled.
    facts = Facts(image, entries_of(["car", "bus"]))
    assert [r.words for r in all_references(facts) if r.granularity == "semantic" and not r.implicit] == ["all cars", "all buses"]
    assert not any("speeding" in question for r in all_references(facts) if r.implicit for question in r.words.held_out)
    assert absent_categories(facts) == []


def test_an_object_of_a_category_without_an_entry_is_refused():
    image = random_labels(0)
    with pytest.raises(ValueError, match="no entry"):
        Facts(image, {})
