"""A finished folder of shards is read wherever it lies, and one that is not finished, or leads elsewhere, is refused."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
from etils import epath
from shards_example import make_record, write_shards

from data_pipeline import random_access
from data_pipeline.loader import Loader, LoaderConfig
from data_pipeline.manifest import seal
from data_pipeline.shard_folder import MixedRecords, ShardedRecords, Texts, decode_mask_counts, encode_mask_counts, open_shards
from data_pipeline.tfrecord import read_offsets
from segearth_r2_jax.errors import UserError

RECORDS = [make_record(number, masks=number % 3) for number in range(10)]


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "shards", RECORDS, 3)


@pytest.fixture
def bucket(folder, empty_bucket):
    """The folder of shards as `gs://bucket/shards`."""
    for path in folder.iterdir():
        empty_bucket.pipe_file(f"gs://bucket/shards/{path.name}", path.read_bytes())
    return empty_bucket


def change_manifest(folder, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(seal(manifest)))


@pytest.mark.parametrize("counts", [[], [0], [None], [3, 0, None, 32767, 1] * 50])
def test_mask_counts_go_there_and_back(counts):
    text = encode_mask_counts(counts)
    assert len(text) <= len(counts) * 2 * 4 / 3 + 4
    assert decode_mask_counts(json.loads(json.dumps(text))).tolist() == [-1 if count is None else count for count in counts]


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a record has 32768 masks"):
        encode_mask_counts([1, 32768])


@pytest.mark.parametrize(
    ("text", "message"), [("AAA", "base64"), ("AAAA", "middle"), ([1, 2], "base64"), (3, "base64"), ("AIA=", "-32768")]
)
def test_damaged_counts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        decode_mask_counts(text)


def test_records_texts_and_places(folder):
    records = ShardedRecords(folder)
    assert [records[number] for number in range(10)] == RECORDS
    assert records.masks_per_record.tolist() == [number % 3 for number in range(10)]
    assert [records.texts(number) for number in range(10)] == [Texts(r.instruction, r.answer) for r in RECORDS]
    assert records.place(4).startswith(f"{folder}/train-00001-of-00003.tfrecord: record 1 at byte ")
    assert records.place(3).endswith("record 0 at byte 0")


def test_texts_that_the_head_does_not_hold_are_read_from_the_record(tmp_path):
    long = [make_record(number, words=3000) for number in range(2)]
    records = ShardedRecords(write_shards(tmp_path / "long", long))
    assert [records.texts(number).instruction for number in range(2)] == [record.instruction for record in long]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["splits"]["train"]["shards"][0].pop("mask_counts"), "not a manifest .*mask_counts"),
        (lambda m: m["splits"]["train"]["shards"][0].update(mask_counts="x"), "not a manifest .*base64"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="../other/x.tfrecord"), "'../other/x.tfrecord' is not the name of a file"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="/etc/passwd"), "'/etc/passwd' is not the name of a file"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file=7), "7 is not the name of a file"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="absent.tfrecord"), r"absent\.tfrecord: cannot be read \(No such file"),
        (lambda m: m.update(splits=[]), "not a manifest"),
        (lambda m: m.pop("splits"), "not a manifest"),
        (lambda m: m["splits"].update(train={"shards": 3}), "not a manifest"),
    ],
)
def test_a_manifest_that_is_wrong_is_named(folder, change, message):
    change_manifest(folder, change)
    with pytest.raises(UserError, match=message):
        ShardedRecords(folder)


def test_other_data_have_another_digest(folder, tmp_path):
    same, other = write_shards(tmp_path / "same", RECORDS, 3), write_shards(tmp_path / "other", RECORDS[::-1], 3)
    assert ShardedRecords(folder).digest == ShardedRecords(same).digest != ShardedRecords(other).digest


def test_shares_of_folders(folder, tmp_path):
    other = write_shards(tmp_path / "other", RECORDS[:4])
    assert open_shards(str(folder)).sizes == (10,)
    mixed = open_shards(f"{folder}=0.75, {other}=0.25")
    assert (mixed.sizes, mixed.weights) == ((10, 4), (0.75, 0.25))
    assert [mixed[number].record_id for number in (0, 9, 10, 13)] == ["set0", "set9", "set0", "set3"]
    assert mixed.texts(11) == Texts(RECORDS[1].instruction, RECORDS[1].answer)
    assert mixed.masks_per_record.tolist() == [*(n % 3 for n in range(10)), 0, 1, 2, 0]
    assert open_shards(f"{folder},{other}").weights == (10, 4)
    assert str(other) in mixed.place(12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a folder's name is missing"),
        ("{},", "a folder's name is missing"),
        ("{}=0.5,{}", "either every folder has a share or none has"),
        ("{}=zero", "'zero' is not a share"),
        ("{}=0,{}=1", "'0' is not a share"),
        ("{}=-1", "'-1' is not a share"),
        ("{}=nan", "'nan' is not a share"),
        ("{}=inf", "'inf' is not a share"),
        ("{}/absent=1", "absent: holds no manifest.json"),
    ],
)
def test_wrong_shares_are_named(folder, text, message):
    with pytest.raises(UserError, match=message):
        open_shards(text.replace("{}", str(folder)))


def test_a_mixture_needs_a_weight_for_each_source():
    with pytest.raises(ValueError, match="0 sources"):
        MixedRecords([], [])


def test_a_folder_in_cloud_storage_is_read_in_ranges(folder, bucket):
    here, there = ShardedRecords(folder), ShardedRecords("gs://bucket/shards")
    bucket.ranges.clear()
    assert [there[number] for number in range(10)] == [here[number] for number in range(10)]
    sizes = np.concatenate([np.diff(read_offsets(path)) for path in sorted(folder.glob("*.tfrecord"))])
    assert [size for _, size in bucket.ranges] == sizes.tolist()
    assert there.digest == here.digest
    assert there.texts(7) == here.texts(7)
    assert there.place(4) == here.place(4).replace(str(folder), "gs://bucket/shards")
    assert pickle.loads(pickle.dumps(there))[3] == here[3]


def test_a_batch_from_cloud_storage_is_that_of_a_local_folder(folder, bucket, small_tokenizer):
    config = LoaderConfig(
        batch_size=2, image_size=16, siglip_size=8, num_image_tokens=4, token_buckets=(300, 512), max_masks=2, mask_canvas=16, num_epochs=1
    )
    with (
        Loader(open_shards(str(folder)), small_tokenizer, config) as local,
        Loader(open_shards("gs://bucket/shards"), small_tokenizer, config) as remote,
    ):
        batches = list(zip(local, remote, strict=True))
    assert len(batches) == 5
    for left, right in batches:
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def test_what_is_missing_in_cloud_storage_is_named(bucket):
    with pytest.raises(UserError, match=r"^gs://bucket/nothing: holds no manifest\.json"):
        ShardedRecords("gs://bucket/nothing")
    bucket.rm_file("gs://bucket/shards/train-00001-of-00003.tfrecord")
    with pytest.raises(UserError, match=r"gs://bucket/shards/train-00001-of-00003\.tfrecord: cannot be read"):
        ShardedRecords("gs://bucket/shards")


def test_a_shard_in_cloud_storage_without_an_index_is_scanned(folder, bucket):
    for path in list(bucket.store):
        if path.endswith(".index"):
            bucket.rm_file(path)
    assert ShardedRecords("gs://bucket/shards")[9] == RECORDS[9]


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(random_access, "_MAX_OPEN", 3)
    paths = [tmp_path / f"{number}.bin" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10)
    files = random_access.RandomAccess()
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(3):
        assert [files.read(str(path), turn, 2)[0] for path in paths] == list(range(20))
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert files.read(str(paths[0]), 8, 10) == b"\0\0"
    assert epath.Path(paths[0]).stat().length == random_access.file_size(paths[0]) == 10
