"""`tfds.data_source` gives the records that the readers give; TensorFlow is not needed."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from lasers_example import SHAPES, row_masks
from PIL import Image

import data_pipeline.tfds
from data_pipeline.annotation import accepted
from data_pipeline.sources import lasers
from data_pipeline.sources.registry import SOURCES
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import decode_image, read_image
from segearth_r2_jax.raster.rle import decode


def prepare(folder, data_dir):
    builder = tfds.builder("lasers", data_dir=data_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return builder


def test_rows_are_those_of_the_reader(lasers_copy, tmp_path):
    path = lasers_copy / "train/annotations/train_ann.json"
    rows = json.loads(path.read_text())
    rows[0]["tags"] = {"granularity": "part", "category": "wing"}
    rows[4]["image_name"] = "../x.png"
    path.write_text(json.dumps(rows))
    grey = Image.open(lasers_copy / "train/images/area/2.png").convert("LA")
    grey.save(lasers_copy / "train/images/area/2.png")
    imported_before = "tensorflow" in sys.modules
    builder = prepare(lasers_copy, tmp_path / "tfds")
    assert ("tensorflow" in sys.modules) == imported_before
    assert list((tmp_path / "tfds/lasers/lasers/1.0.0").glob("*.array_record*"))
    found = {row["id"].decode(): row for row in tfds.data_source("lasers", split="train", data_dir=tmp_path / "tfds")}
    assert sorted(found) == sorted(f"row{number}" for number in range(11) if number != 4)
    for annotation in (row for row in lasers.read(lasers_copy, "train") if hasattr(row, "record_id")):
        row, number = found[annotation.record_id], int(annotation.record_id[3:])
        assert (row["height"], row["width"]) == SHAPES[number % len(SHAPES)]
        assert (row["instruction"].decode(), row["answer"].decode()) == (annotation.instruction, annotation.answer)
        assert row["image_name"].decode() == annotation.image_name
        # Decoders of JPEG may round differently.
        np.testing.assert_allclose(row["image"].astype(int), read_image(annotation.image_path), atol=4 if number % 2 else 0)
        masks = [decode({"size": [row["height"], row["width"]], "counts": counts.decode()}) for counts in row["masks"]]
        np.testing.assert_array_equal(masks or np.zeros((0, *row["image"].shape[:2])), row_masks(number))
        assert row["masks_known"]
        assert row["box"].tolist() == [-1] * 4
    assert found["row0"]["tags"] == {"granularity": b"part", "category": b"wing", "multiplicity": b"", "reasoning": b"", "language": b""}
    assert builder.info.splits["test"].num_examples == 3


def test_images_stay_in_their_own_bytes(lasers_folder, tmp_path):
    builder = prepare(lasers_folder, tmp_path)
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    expected = {row.record_id: row.image_path.read_bytes() for row in accepted(lasers.read(lasers_folder, "train"))}
    assert {row["id"].decode(): row["image"] for row in source} == expected
    # A worker process of a loader receives a copy.
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3]["id"] == source[3]["id"]


def test_an_image_that_decoders_see_differently_becomes_a_png(tmp_path):
    photograph = Image.new("RGB", (20, 10), (200, 10, 10))
    turned = photograph.getexif()
    turned[0x0112] = 6
    photograph.save(tmp_path / "turned.jpg", exif=turned)
    content = (tmp_path / "turned.jpg").read_bytes()
    stored = data_pipeline.tfds.lasers._plain_image(content, "x")
    assert stored.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode_image(stored, "x"), decode_image(content, "x"))
    assert decode_image(stored, "x").shape == (20, 10, 3)


def test_every_source_has_a_configuration():
    assert set(data_pipeline.tfds.Lasers.builder_configs) == set(SOURCES)


def test_a_split_without_usable_rows_is_refused(lasers_copy, tmp_path):
    path = lasers_copy / "test/annotations/test_short_query.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "description": ""} for row in rows]))
    with pytest.raises(UserError, match="no row of the split 'test' can be used"):
        prepare(lasers_copy, tmp_path / "tfds")
