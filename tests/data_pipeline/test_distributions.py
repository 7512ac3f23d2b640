"""Distributions count what the records hold."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.distributions import SHARE_EDGES, UNKNOWN, Distributions, in_order, length_bins, share_bin, word_count
from data_pipeline.schema import Record, Tags
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster.rle import encode


def record(number=0, masks=(), tags=Tags(), instruction="the two lakes", image="a.png"):
    return Record(f"r{number}", "train.json", image, b"", 10, 20, instruction, "x", masks, tags)


def block(pixels):
    mask = np.zeros((10, 20), np.uint8)
    mask.flat[:pixels] = 1
    return encode(mask)


def test_records_targets_and_images_are_counted():
    found = Distributions()
    found.add(record(0, (block(200), block(2), block(0)), Tags("part", "multi", "implicit", "long", "wing, wing, tail")))
    found.add(record(1, (), Tags("part", "single", category="wing"), image="b.png"))
    found.add(record(2, None, instruction="lakes"))
    assert (found.records, found.targets, found.images) == (3, 3, 2)
    described = found.to_dict()
    assert described["tags"]["granularity"] == {"part": 2, UNKNOWN: 1}
    assert described["tags"]["multiplicity"] == {"single": 1, "multi": 1, UNKNOWN: 1}
    assert described["tags"]["language"] == {"long": 1, UNKNOWN: 2}
    assert described["categories"] == {"wing": 2, "tail": 1, UNKNOWN: 1}
    assert described["masks_per_record"] == {"0": 1, "3": 1, "withheld": 1}
    assert described["empty_masks"] == 1
    shares = described["target_share"]["counts"]
    assert (shares[-1], sum(shares)) == (1, 2)
    assert shares[share_bin(2 / 200)] == 1
    assert described["instruction_words"] == {"1": 1, "3": 2}
    assert described["image_sizes"] == {"20x10": 2}


def test_damaged_runs_are_named():
    with pytest.raises(UserError, match=r"train\.json: row 'r7': mask 1: the RLE's runs cover"):
        Distributions().add(record(7, (block(1), {"size": [10, 20], "counts": [3]})))


@pytest.mark.parametrize("number", range(len(SHARE_EDGES) - 1))
def test_a_share_lies_in_its_bin(number):
    low, high = SHARE_EDGES[number : number + 2]
    assert share_bin(low) == number
    assert share_bin((low + high) / 2) == number
    assert share_bin(1e-9) == 0
    assert share_bin(1.0) == len(SHARE_EDGES) - 2


@pytest.mark.parametrize("lengths", [{}, {0: 3}, {1: 1, 2: 5}, {3: 1, 500: 2}, dict.fromkeys(range(100), 1)])
def test_bins_of_lengths_hold_every_length(lengths):
    edges, counts = length_bins(lengths)
    assert len(edges) == len(counts) + 1 <= 25
    assert len(set(np.diff(edges))) == 1
    for number, count in enumerate(counts):
        assert count == sum(many for length, many in lengths.items() if edges[number] <= length < edges[number + 1])
    assert sum(counts) == sum(lengths.values())


def test_words_are_counted_in_scripts_with_and_without_spaces():
    assert [word_count(text) for text in ("", " a  b\nc ", "所有的湖泊", "find 湖 now")] == [0, 3, 5, 3]


def test_named_values_come_first_and_unknown_ones_last():
    counted = Distributions().categories
    counted.update({UNKNOWN: 9, "b": 1, "a": 1, "c": 5})
    assert [value for value, _ in in_order(counted)] == ["c", "a", "b", UNKNOWN]
    assert [value for value, _ in in_order(counted, ["b"])] == ["b", "c", "a", UNKNOWN]
