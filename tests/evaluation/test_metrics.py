"""gIoU, cIoU and the pairing rules, against numbers worked out by hand."""

import numpy as np
import pytest

from segearth_r2_jax.evaluation.metrics import Score, compare, intersection_union, pair_by_order, stretch_truth


def _mask(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


LEFT = _mask("##..", "##..")  # 4 pixels
TOP = _mask("####", "....")  # 4 pixels, 2 of them in LEFT
ALL = _mask("####", "####")  # 8 pixels
NONE = _mask("....", "....")


def _score(*records):
    score = Score()
    for predicted, truth in records:
        score.add(compare(predicted, truth))
    return score


def test_intersection_and_union_count_pixels():
    assert intersection_union(LEFT, TOP) == (2, 6)
    assert intersection_union(LEFT, NONE) == (0, 4)
    with pytest.raises(ValueError, match="different sizes"):
        intersection_union(LEFT, LEFT.T)


def test_giou_is_the_mean_over_masks_and_ciou_the_ratio_of_sums():
    # Record 1 has two masks (2/6 and 8/8), record 2 one mask (4/8): the mean is over three masks, not over two records.
    score = _score(([TOP, ALL], [LEFT, ALL]), ([LEFT], [ALL]))
    assert score.giou == pytest.approx((2 / 6 + 1 + 4 / 8) / 3)
    assert score.ciou == pytest.approx((2 + 8 + 4) / (6 + 8 + 8))
    assert (score.records, score.masks, score.predicted, score.empty) == (2, 3, 3, 0)


def test_no_predicted_mask_scores_zero_on_every_mask_and_counts_as_empty():
    score = _score(([], [LEFT, ALL]), ([LEFT], [LEFT]))
    assert score.giou == pytest.approx(1 / 3)
    assert score.ciou == pytest.approx(4 / (4 + 8 + 4))
    assert score.empty_share == 0.5


def test_fewer_predicted_masks_repeat_the_last():
    score = _score(([ALL, LEFT], [ALL, LEFT, TOP]))
    assert score.giou == pytest.approx((1 + 1 + 2 / 6) / 3)
    assert score.predicted == 2


def test_more_predicted_masks_are_left_out_and_cost_nothing():
    score = _score(([LEFT, ALL, TOP], [LEFT]))
    assert score.giou == score.ciou == 1
    assert score.predicted == 3


def test_pairing_is_by_order_not_by_overlap():
    assert _score(([TOP, LEFT], [LEFT, TOP])).giou == pytest.approx(2 / 6)


def test_an_empty_union_counts_as_one():
    score = _score(([NONE], [NONE]))
    assert score.giou == 1
    assert score.ciou == 1
    assert _score(([], [NONE])).giou == 1


def test_an_empty_truth_that_is_answered_with_pixels_scores_zero():
    assert _score(([LEFT], [NONE])).giou == 0


def test_a_record_without_ground_truth_changes_no_iou():
    score = _score(([LEFT], []), ([], []), ([LEFT], [LEFT]))
    assert score.giou == 1
    assert (score.records, score.masks, score.empty) == (3, 1, 1)


def test_without_records_there_are_no_figures():
    assert (Score().giou, Score().ciou, Score().empty_share) == (None, None, None)
    assert Score().to_dict()["gIoU"] is None


def test_scores_of_files_add_up_to_the_score_of_all():
    records = [([TOP], [LEFT]), ([], [ALL]), ([ALL, LEFT], [LEFT])]
    assert _score(*records[:1]) + _score(*records[1:]) == _score(*records)


def test_pairing_without_a_prediction_is_empty_masks_of_the_size_asked_for():
    masks = pair_by_order([], 2, (3, 5))
    assert [m.shape for m in masks] == [(3, 5), (3, 5)]
    assert not any(m.any() for m in masks)


def test_stretching_a_small_square_gives_the_published_count():
    square = np.zeros((10, 10), np.uint8)
    square[4:6, 4:6] = 1
    assert stretch_truth(square, 25).sum() == 25
    np.testing.assert_array_equal(stretch_truth(square, 10), square)


def test_stretching_is_what_torch_does_with_uint8():
    torch = pytest.importorskip("torch", reason="torch is the oracle of the official rule")
    rng = np.random.default_rng(0)
    sizes = [(*rng.integers(1, 90, 2), int(rng.integers(1, 120))) for _ in range(100)]
    for h, w, size in [*sizes, (900, 900, 1024), (512, 768, 1024), (1500, 1100, 1024), (1, 1, 64)]:
        mask = (rng.random((h, w)) < 0.4).astype(np.uint8)
        expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size=(size, size), mode="bilinear")
        np.testing.assert_array_equal(stretch_truth(mask, size), expected[0, 0].numpy() > 0, err_msg=f"{h}x{w} -> {size}")
