"""A damaged record stops the run with its shard and byte, or leaves its row empty; nothing else changes place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from shards_example import make_record, write_shards

from data_pipeline.loader import Loader, LoaderConfig, ShardedRecords
from data_pipeline.tfrecord import read_offsets
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import IGNORE_LABEL, IMAGE_SLOT

CONFIG = LoaderConfig(
    batch_size=4,
    image_size=16,
    siglip_size=8,
    num_image_tokens=4,
    token_buckets=(512,),
    max_masks=2,
    mask_canvas=16,
    seed=1,
    num_epochs=1,
)
SKIP = dataclasses.replace(CONFIG, on_corrupt="skip")
RECORDS = 12


def good_records():
    return [make_record(number) for number in range(RECORDS)]


def flip(folder, number: int, byte: int) -> int:
    """Flips a bit in record `number` of the first shard; returns where the record begins."""
    path = folder / "train-00000-of-00002.tfrecord"
    start = int(read_offsets(path)[number])
    content = bytearray(path.read_bytes())
    content[start + byte] ^= 4
    path.write_bytes(content)
    return start


def load(source, tokenizer, config, **process):
    with Loader(source, tokenizer, config, **process) as loader:
        batches = list(loader)
        return batches, loader.corrupt


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "shards", good_records())


@pytest.mark.parametrize("byte", [0, 8, 30, 500, -1])
def test_a_flipped_bit_stops_with_shard_and_byte(folder, small_tokenizer, byte):
    records = ShardedRecords(folder)
    size = np.diff(read_offsets(folder / "train-00000-of-00002.tfrecord"))[3]
    start = flip(folder, 3, byte % size)
    message = rf"train-00000-of-00002\.tfrecord: record 3 is damaged at byte {start} \(.*checksum.*\); build the shard again$"
    with pytest.raises(UserError, match=message):
        load(records, small_tokenizer, CONFIG)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_skipped_record_leaves_its_row_empty_and_the_others_alone(folder, small_tokenizer, capsys, workers):
    records = ShardedRecords(folder)
    expected, _ = load(records, small_tokenizer, CONFIG)
    start = flip(folder, 3, 40)
    batches, corrupt = load(records, small_tokenizer, dataclasses.replace(SKIP, workers=workers))
    assert corrupt == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("damaged")]
    assert len(lines) == 1
    assert lines[0].startswith(f"damaged record 1, its row is left empty: {folder}/train-00000-of-00002.tfrecord: record 3 is damaged")
    assert f"at byte {start} " in lines[0]
    assert len(batches) == len(expected) == 3
    for got, whole in zip(batches, expected, strict=True):
        assert got.keys() == whole.keys()
        bad = whole["record_index"] == 3
        for key, value in got.items():
            assert (value.shape, value.dtype) == (whole[key].shape, whole[key].dtype)
            np.testing.assert_array_equal(value[~bad], whole[key][~bad], err_msg=key)
        assert (got["record_index"][bad] == -1).all()
        assert (got["labels"][bad] == IGNORE_LABEL).all()
        assert not got["mask_valid"][bad].any()
        assert not got["masks"][bad].any()
        assert ((got["token_ids"][bad] == IMAGE_SLOT).sum(1) == 4).all()
        np.testing.assert_array_equal(got["attention_mask"][bad].sum(1), np.full(bad.sum(), 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_bytes": make_record(5).image_bytes[:200]}, "image 5.png: is damaged or cut short"),
        ({"image_bytes": b"no image"}, "image 5.png: is not an image"),
        ({"height": 17}, "the image is 16 x 16, the record says 17 x 16"),
        ({"answer": "It is [SEG], [SEG]."}, r"the answer has 2 \[SEG\], but there are 1 masks"),
        ({"instruction": ""}, "the instruction is empty"),
        ({"masks": ({"size": [16, 16], "counts": "0"},)}, "mask 0"),
    ],
)
@pytest.mark.parametrize("buckets", [(512,), (300, 512)])
def test_what_does_not_fit_together_is_damage_too(tmp_path, small_tokenizer, capsys, changes, message, buckets):
    records = good_records()
    records[5] = dataclasses.replace(records[5], **changes)
    source = ShardedRecords(write_shards(tmp_path / "shards", records))
    with pytest.raises(UserError, match=rf"^set\.json: row 'set5': .*{message}.* \[.*00000-of-00002\.tfrecord: record 5 at byte \d+\]$"):
        load(source, small_tokenizer, dataclasses.replace(CONFIG, token_buckets=buckets))
    batches, corrupt = load(source, small_tokenizer, dataclasses.replace(SKIP, token_buckets=buckets))
    seen = np.concatenate([batch["record_index"] for batch in batches]).tolist()
    assert sorted(seen) == [-1, *range(5), *range(6, RECORDS)]
    assert corrupt == 1
    assert "row 'set5'" in capsys.readouterr().err


def test_each_process_counts_its_own(folder, small_tokenizer):
    records = ShardedRecords(folder)
    flip(folder, 0, 40)
    flip(folder, 4, 40)
    parts = [load(records, small_tokenizer, SKIP, process_index=index, process_count=2) for index in range(2)]
    assert sum(corrupt for _, corrupt in parts) == 2
    assert all(len(batches) == 3 for batches, _ in parts)
    seen = np.concatenate([batch["record_index"] for batches, _ in parts for batch in batches])
    assert sorted(seen.tolist()) == [-1, -1, 1, 2, 3, *range(5, RECORDS)]


def test_a_head_that_cannot_be_read_waits_for_its_row(folder, small_tokenizer):
    """The words are read without their checksum, for their length alone: what they are decides the whole record."""
    config = dataclasses.replace(SKIP, token_buckets=(300, 512))
    records = ShardedRecords(folder)
    with Loader(records, small_tokenizer, config) as loader:
        buckets = loader.get_state()["buckets"]
    flip(folder, 2, 14)  # The framing of the first feature.
    with Loader(records, small_tokenizer, config) as loader:
        assert [size for size, _ in loader.get_state()["buckets"]] == [size for size, _ in buckets]
        seen = np.concatenate([batch["record_index"] for batch in loader])
        assert loader.corrupt == 1
    assert 2 not in seen


def test_a_text_that_is_too_long_is_not_damage(tmp_path, small_tokenizer):
    records = good_records()
    records[5] = make_record(5, words=300)
    source = ShardedRecords(write_shards(tmp_path / "shards", records))
    with pytest.raises(UserError, match=r"row 'set5': needs \d+ token positions, at most 512 fit"):
        load(source, small_tokenizer, SKIP)
