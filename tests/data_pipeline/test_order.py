"""The order of the records is a function of the position, and each record has its turn exactly once per epoch."""

from __future__ import annotations

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from data_pipeline.order import ENDLESS, Order, ProcessShare, Turns


def make_order(sets, weights=None, *, num_epochs=3, batch_size=4, buckets=(8,), bucket_of_record=None, seed=5) -> Order:
    weights = [1.0] * len(sets) if weights is None else weights
    sets = [np.asarray(numbers, np.int32) for numbers in sets]
    return Order(sets, weights, seed=seed, num_epochs=num_epochs, batch_size=batch_size, buckets=buckets, bucket_of_record=bucket_of_record)


def walk(order: Order, end: int | None = None) -> list[int]:
    return [order[position].record for position in range(len(order) if end is None else end)]


@pytest.mark.parametrize("weights", [[1], [0.7, 0.3], [5, 3, 1], [1e-3, 1, 1], [Fraction(1, 3), Fraction(1, 6), Fraction(1, 2)]])
def test_turns_are_dealt_out_evenly(weights):
    turns = Turns(weights)
    taken = [0] * len(weights)
    for number in range(3000):
        part, turn = turns[number]
        assert turn == taken[part]  # Every part counts its turns without a gap, although each was computed from its number alone.
        taken[part] += 1
        for count, weight in zip(taken, weights, strict=True):
            assert abs(count - (number + 1) * weight / sum(weights)) < len(weights)


@pytest.mark.parametrize("counts", [[7, 3], [1, 1, 1], [100, 1, 33], [1, 999], [13, 17, 19, 23]])
def test_whole_weights_are_used_up_exactly(counts):
    turns = Turns(counts)
    assert Counter(turns[number][0] for number in range(sum(counts))) == dict(enumerate(counts))


def test_turns_far_out_are_found_at_once():
    turns = Turns([0.7, 0.2, 0.1])
    start = 10**12
    before = turns[start]
    for number in range(start + 1, start + 200):
        part, turn = turns[number]
        if part == before[0]:
            assert turn == before[1] + 1
            before = part, turn


def test_each_epoch_is_another_permutation():
    order = make_order([range(10, 60)])
    assert len(order) == 150
    epochs = np.array(walk(order)).reshape(3, 50)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(10, 60), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert walk(make_order([range(10, 60)])) == walk(order)
    assert walk(make_order([range(10, 60)], seed=6)) != walk(order)


def test_a_large_set_is_permuted_too():
    order = make_order([range(8200)], num_epochs=2)
    epochs = np.array(walk(order)).reshape(2, 8200)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(8200), (2, 1)))
    assert (epochs[0] != epochs[1]).any()


def test_sets_are_mixed_by_their_shares_and_each_comes_once_per_round():
    order = make_order([range(40), range(40, 50)], [0.6, 0.4], num_epochs=None)
    assert len(order) == ENDLESS
    records = walk(order, 1000)
    large = [record for record in records if record < 40]
    small = [record for record in records if record >= 40]
    assert (len(large), len(small)) == (600, 400)
    for numbers, size in ((large, 40), (small, 10)):
        for start in range(0, len(numbers) - size + 1, size):
            assert len(set(numbers[start : start + size])) == size
    # No stretch of a batch's size is far from its share.
    assert {sum(record < 40 for record in records[start : start + 10]) for start in range(0, 1000, 10)} <= {5, 6, 7}


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_the_rows_of_a_batch_share_a_bucket(batch_size):
    lengths = np.random.default_rng(0).integers(0, 3, 101)
    order = make_order([range(101)], batch_size=batch_size, buckets=(8, 16, 32), bucket_of_record=lengths)
    assert len(order) % batch_size == 0
    slots = [order[position] for position in range(len(order))]
    for start in range(0, len(slots), batch_size):
        assert len({slot.bucket for slot in slots[start : start + batch_size]}) == 1
    assert all(slot.bucket == (8, 16, 32)[lengths[slot.record]] for slot in slots)
    # Three epochs: only what fills no batch of its bucket is missing at the end.
    times = Counter(slot.record for slot in slots)
    for bucket in range(3):
        members = np.flatnonzero(lengths == bucket)
        given = [times[record] for record in members]
        assert set(given) <= {2, 3}
        assert 3 * len(members) - sum(given) == 3 * len(members) % batch_size
    # Buckets alternate instead of coming one after the other.
    assert len({slot.bucket for slot in slots[: 8 * batch_size]}) == 3


def test_an_endless_stream_with_buckets_goes_round_each_of_them():
    lengths = np.arange(30) % 3 == 0
    order = make_order([range(30)], batch_size=4, buckets=(8, 16), bucket_of_record=lengths, num_epochs=None)
    slots = [order[position] for position in range(3000)]
    for bucket, size in ((16, 10), (8, 20)):
        records = [slot.record for slot in slots if slot.bucket == bucket]
        assert len(records) == pytest.approx(3000 * size / 30, abs=8)
        for start in range(0, len(records) - size + 1, size):
            assert len(set(records[start : start + size])) == size


def test_mixed_sets_with_buckets_keep_their_shares():
    lengths = np.array([0] * 30 + [1] * 10 + [1] * 20)
    order = make_order([range(40), range(40, 60)], [0.5, 0.5], batch_size=4, buckets=(8, 16), bucket_of_record=lengths, num_epochs=None)
    slots = [order[position] for position in range(4000)]
    assert sum(slot.record < 40 for slot in slots) == pytest.approx(2000, abs=10)
    assert sum(slot.bucket == 8 for slot in slots) == pytest.approx(1500, abs=8)


def test_a_bucket_that_fills_no_batch_is_left_out():
    order = make_order([range(9)], num_epochs=1, batch_size=4, buckets=(8, 16), bucket_of_record=np.array([0] * 8 + [1]))
    assert sorted(walk(order)) == list(range(8))
    assert len(make_order([range(3)], num_epochs=1, batch_size=4, buckets=(8, 16), bucket_of_record=np.array([0, 0, 1]))) == 0


def test_processes_share_the_stream_and_copies_agree():
    order = make_order([range(20)])
    whole = walk(order)
    for count in (1, 2, 4):
        rows = 4 // count
        shares = [ProcessShare(pickle.loads(pickle.dumps(order)), 4, 4, process * rows, rows, 3) for process in range(count)]
        got = [[share[number].record for number in range(len(share))] for share in shares]
        batches = np.array(got).reshape(count, 3, rows).swapaxes(0, 1)
        np.testing.assert_array_equal(batches.ravel(), whole[4:16])
