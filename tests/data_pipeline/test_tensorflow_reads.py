"""TensorFlow's own readers read the shards, told by nothing but the manifest."""

from __future__ import annotations

import json

import pytest

from data_pipeline.build_shards import build_shards
from data_pipeline.schema import DIMENSIONS
from data_pipeline.shard_folder import ShardedRecords

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow", reason="TensorFlow is not installed; it is needed by nothing but this test")


def parse(tf, folder, split="train") -> list[dict]:
    """The examples of a split as lists of values; features that are absent are empty lists."""
    manifest = json.loads((folder / "manifest.json").read_text())
    kinds = {"bytes": tf.string, "int64": tf.int64}
    features = {name: tf.io.VarLenFeature(kinds[feature["kind"]]) for name, feature in manifest["features"].items()}
    shards = [str(folder / entry["file"]) for entry in manifest["splits"][split]["shards"]]
    parsed = tf.data.TFRecordDataset(shards).map(lambda example: tf.io.parse_single_example(example, features))
    return [{name: value.values.numpy().tolist() for name, value in example.items()} for example in parsed]


def test_tensorflow_reads_what_we_write(tf, lasers_copy, tmp_path):
    path = lasers_copy / "train/annotations/train_ann.json"
    rows = json.loads(path.read_text())
    rows[2]["tags"] = {"granularity": "part", "language": "long", "category": "wing"}
    path.write_text(json.dumps(rows))
    build_shards("lasers", lasers_copy, tmp_path / "out", shards=3)
    examples = parse(tf, tmp_path / "out")
    records = ShardedRecords(tmp_path / "out")
    assert len(examples) == len(records) == 11
    for number, example in enumerate(examples):
        record = records[number]
        assert example["id"] == [record.record_id.encode()]
        assert example["instruction"] == [record.instruction.encode()]
        assert example["answer"] == [record.answer.encode()]
        assert (example["image/height"], example["image/width"]) == ([record.height], [record.width])
        assert example["image/encoded"] == [record.image_bytes]
        assert example["masks/counts"] == [mask["counts"].encode() for mask in record.masks]
        assert tf.io.decode_image(example["image/encoded"][0]).shape == (record.height, record.width, 3)
        for name in (*DIMENSIONS, "category"):
            value = getattr(record.tags, name)
            assert example[f"tags/{name}"] == ([] if value is None else [value.encode()])


def test_tensorflow_finds_the_same_damage(tf, lasers_folder, tmp_path):
    build_shards("lasers", lasers_folder, tmp_path / "out", split="train", shards=1)
    shard = tmp_path / "out/train-00000-of-00001.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError):
        parse(tf, tmp_path / "out")


def test_we_read_what_tensorflow_writes(tf, tmp_path):
    from data_pipeline.tf_example import decode_example
    from data_pipeline.tfrecord import TFRecordSource

    values = {"text": [b"one", b""], "numbers": [0, -1, 2**62]}
    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=values["text"])),
                "numbers": tf.train.Feature(int64_list=tf.train.Int64List(value=values["numbers"])),
            }
        )
    )
    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example.SerializeToString())
    assert decode_example(TFRecordSource([path])[0]) == values
