"""Random access to TFRecord files; no damaged byte goes unnoticed."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import struct

import grain
import numpy as np
import pytest

from data_pipeline.tfrecord import TFRecordSource, frame, index_path, masked_crc32c, read_offsets, scan_offsets, write_shard
from segearth_r2_jax.errors import UserError

RECORDS = [b"first", b"", bytes(range(40)), b"last one"]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "x.tfrecord"
    assert write_shard(path, iter(RECORDS)) == 4
    return path


def read_all(path) -> list[bytes]:
    source = TFRecordSource([path])
    return [source[index] for index in range(len(source))]


def test_the_checksum_is_the_masked_crc32c():
    # Check value of CRC-32C over "123456789".
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
    assert masked_crc32c(b"123456789") == struct.pack("<I", masked)


def test_the_framing_is_tfrecord_s(shard):
    content = shard.read_bytes()
    assert content == b"".join(frame(record) for record in RECORDS)
    assert content[:8] == struct.pack("<Q", 5)
    assert content[12:17] == b"first"
    assert [bytes(record) for record in grain.experimental.TFRecordIterDataset(str(shard))] == RECORDS


def test_records_of_several_shards_are_one_sequence(tmp_path, shard):
    other, empty = tmp_path / "y.tfrecord", tmp_path / "z.tfrecord"
    write_shard(other, [b"other"])
    write_shard(empty, [])
    source = TFRecordSource([empty, shard, empty, other])
    assert len(source) == 5
    assert [source[index] for index in (4, 0, 3, 1, 2)] == [b"other", b"first", b"last one", b"", RECORDS[2]]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            source[index]


def test_it_travels_to_other_processes_and_threads(shard):
    source = TFRecordSource([shard])
    assert source[0] == b"first"
    copy = pickle.loads(pickle.dumps(source))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.__getitem__, [0, 1, 2, 3] * 50)) == RECORDS * 50
    source.close()
    assert source[3] == b"last one"


def test_every_flipped_bit_is_found(shard):
    content = shard.read_bytes()
    ends = read_offsets(shard)
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            shard.write_bytes(damaged)
            source = TFRecordSource([shard])
            bad = int(np.searchsorted(ends, position, side="right")) - 1
            with pytest.raises(UserError, match=f"x.tfrecord: record {bad} is damaged"):
                source[bad]
            # The others are still there.
            assert [source[i] for i in range(4) if i != bad] == [record for i, record in enumerate(RECORDS) if i != bad]


def test_every_flipped_byte_is_found_without_an_index(shard):
    content = shard.read_bytes()
    index_path(shard).unlink()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.tfrecord: record \d"):
            read_all(shard)


def test_a_shard_that_is_cut_off_is_found(shard):
    content = shard.read_bytes()
    ends = set(read_offsets(shard).tolist())
    for length in range(len(content)):
        shard.write_bytes(content[:length])
        if length in ends:  # A whole number of records is a shard; the manifest knows how many there should be.
            assert read_all(shard) == RECORDS[: sorted(ends).index(length)]
        else:
            with pytest.raises(UserError, match=r"x\.tfrecord: record \d is (damaged|cut short)"):
                read_all(shard)


def test_the_index_only_saves_time(shard):
    offsets = scan_offsets(shard)
    np.testing.assert_array_equal(read_offsets(shard), offsets)
    index = index_path(shard).read_bytes()
    assert len(index) == 8 * 5 + 4
    for position in range(len(index)):
        damaged = bytearray(index)
        damaged[position] ^= 0x10
        index_path(shard).write_bytes(damaged)
        np.testing.assert_array_equal(read_offsets(shard), offsets)
    for length in range(len(index)):
        index_path(shard).write_bytes(index[:length])
        np.testing.assert_array_equal(read_offsets(shard), offsets)
    index_path(shard).unlink()
    assert read_all(shard) == RECORDS


def test_the_index_is_used(shard, monkeypatch):
    monkeypatch.setattr("data_pipeline.tfrecord.scan_offsets", None)
    assert read_all(shard) == RECORDS


def test_an_index_of_another_shard_is_not_used(tmp_path, shard):
    write_shard(tmp_path / "y.tfrecord", [b"other", b"one"])
    os.replace(index_path(tmp_path / "y.tfrecord"), index_path(shard))
    assert read_all(shard) == RECORDS


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def records():
        yield b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "x.tfrecord", records())
    assert list(tmp_path.iterdir()) == []


def test_an_absent_shard_is_named(tmp_path, shard):
    with pytest.raises(UserError, match=r"y\.tfrecord: cannot be read \(No such file"):
        TFRecordSource([tmp_path / "y.tfrecord"])
    source = TFRecordSource([shard])
    shard.unlink()
    with pytest.raises(UserError, match=r"x\.tfrecord: cannot be read"):
        source[0]
