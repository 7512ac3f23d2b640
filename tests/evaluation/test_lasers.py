"""LaSeRS evaluation with a small random network: each question is asked once, and the figures are those of its answers."""

from typing import NamedTuple

import numpy as np
import pytest

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.evaluation.lasers import FILES, evaluate, in_order
from segearth_r2_jax.evaluation.metrics import Score, compare, stretch_truth
from segearth_r2_jax.inference.segment import Segmenter
from segearth_r2_jax.inputs.letterbox import Letterbox

NEW_TOKENS = 10
RNG = np.random.default_rng(0)


class Example(NamedTuple):
    record_id: str
    image_name: str
    image: np.ndarray
    instruction: str
    masks: np.ndarray | None

    def load(self):
        return self.image, self.masks


def _example(name, image, masks, instruction="find the roof"):
    return Example(f"{name}: {instruction}", name, image, instruction, masks)


WIDE = RNG.integers(0, 256, (70, 211, 3)).astype(np.uint8)
FLAT = np.full((50, 60, 3), 200, np.uint8)
WIDE_MASKS = RNG.integers(0, 2, (2, 70, 211)).astype(np.uint8)
FLAT_MASKS = np.zeros((1, 50, 60), np.uint8)
FLAT_MASKS[0, :25] = 1
RECORDS = {
    "test_short_query": [_example("wide", WIDE, WIDE_MASKS), _example("flat", FLAT, FLAT_MASKS)],
    "test_explicit": [_example("wide", WIDE, WIDE_MASKS), _example("wide", WIDE, WIDE_MASKS[:1], "where is the river")],
    "test_implicit": [_example("flat", FLAT, None)],
}


class Counting:
    """A Segmenter that writes down what it is asked."""

    def __init__(self, segmenter):
        self._segmenter, self.encoded, self.asked, self.config = segmenter, 0, [], segmenter.config

    def encode(self, image):
        self.encoded += 1
        return self._segmenter.encode(image)

    def segment_batch(self, images, instructions, **options):
        self.asked += [(image.height, instruction) for image, instruction in zip(images, instructions, strict=True)]
        return self._segmenter.segment_batch(images, instructions, **options)


@pytest.fixture(scope="module")
def segmenter(checkpoint_dir):
    return Segmenter.load(checkpoint_dir)


def _expected(segmenter, records):
    score = Score()
    for record in records:
        answer = segmenter.segment(record.image, record.instruction, max_new_tokens=NEW_TOKENS)
        score.add(compare([t.mask for t in answer.targets], [] if record.masks is None else list(record.masks > 0)))
    return score


def test_scores_are_those_of_the_answers_and_every_question_is_asked_once(segmenter):
    counting, done = Counting(segmenter), []
    scores = evaluate(counting, RECORDS, max_new_tokens=NEW_TOKENS, progress=done.append)
    for name, records in RECORDS.items():
        assert scores.files[name] == _expected(segmenter, records)
        assert scores.files[name].predicted > 0
    assert sum(done) == 5
    assert sorted(counting.asked) == [(50, "find the roof"), (70, "find the roof"), (70, "where is the river")]


def test_batches_change_no_figure_and_encode_an_image_once(segmenter):
    counting = Counting(segmenter)
    one = evaluate(segmenter, RECORDS, max_new_tokens=NEW_TOKENS)
    two = evaluate(counting, RECORDS, max_new_tokens=NEW_TOKENS, batch_size=4)
    assert counting.encoded == 2
    for name in RECORDS:
        assert two.files[name].records == one.files[name].records
        assert two.files[name].giou == pytest.approx(one.files[name].giou, abs=1e-3)
    assert two.baselines == one.baselines


def test_the_floor_is_the_share_of_the_image_that_the_masks_cover(segmenter):
    scores = evaluate(segmenter, RECORDS, max_new_tokens=NEW_TOKENS)
    shares = [*WIDE_MASKS.mean((1, 2)), FLAT_MASKS.mean()]
    assert scores.baselines["test_short_query"].giou == pytest.approx(np.mean(shares))


def test_withheld_masks_count_as_records_only(segmenter):
    scores = evaluate(segmenter, {"test_implicit": RECORDS["test_implicit"]}, max_new_tokens=NEW_TOKENS)
    assert (scores.files["test_implicit"].records, scores.files["test_implicit"].masks) == (1, 0)
    assert scores.files["test_implicit"].giou is None


def test_the_official_rule_compares_on_the_frame_of_the_model(segmenter):
    size = segmenter.config.image_size
    scores = evaluate(segmenter, RECORDS, max_new_tokens=NEW_TOKENS, rule="official-1024")
    answer = segmenter.segment(WIDE, "find the roof", max_new_tokens=NEW_TOKENS)
    expected = Score()
    frame = [Letterbox(size, size, size).restore(logits) > 0 for logits in answer.frame_logits]
    expected.add(compare(frame, [stretch_truth(mask, size) for mask in WIDE_MASKS]))
    only_wide = evaluate(segmenter, {"f": RECORDS["test_short_query"][:1]}, max_new_tokens=NEW_TOKENS, rule="official-1024")
    assert only_wide.files["f"] == expected
    assert scores.files["test_short_query"].union > expected.union


def test_wrong_rule_and_wrong_mask_size(segmenter):
    with pytest.raises(UserError, match="no rule is called"):
        evaluate(segmenter, RECORDS, rule="mine")
    wrong = {"f": [_example("flat", FLAT, FLAT_MASKS[:, :20])]}
    with pytest.raises(UserError, match=r"flat: find the roof: a mask is \(20, 60\)"):
        evaluate(segmenter, wrong, max_new_tokens=NEW_TOKENS)


def test_files_are_reported_in_the_published_order():
    assert len(FILES) == 9
    assert in_order(["test_mine", "test_explicit", "test_short_query"]) == ["test_short_query", "test_explicit", "test_mine"]
