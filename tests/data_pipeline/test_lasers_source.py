"""The published LaSeRS layout is read as it is, and what is wrong in it is said with file and row."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from lasers_example import SHAPES, annotation, row_masks
from PIL import Image

from data_pipeline.annotation import Annotation, Rejection, accepted
from data_pipeline.schema import Record, Tags
from data_pipeline.sources import lasers
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster.rle import decode, encode


def read_rows(folder, split) -> list[Annotation]:
    return list(accepted(lasers.read(folder, split)))


def change(folder, split="train", file="train_ann.json", number=0, **content):
    """Sets fields of one row; a field that is None is removed."""
    path = folder / split / "annotations" / file
    rows = json.loads(path.read_text())
    rows[number] = {key: value for key, value in {**rows[number], **content}.items() if value is not None}
    path.write_text(json.dumps(rows))


def test_rows_become_records(lasers_folder):
    rows = read_rows(lasers_folder, "train")
    assert len(rows) == 11
    for number, row in enumerate(rows):
        record = row.load()
        content = annotation(number)
        assert record.record_id == f"row{number}"
        assert record.source == "train/annotations/train_ann.json"
        assert (record.instruction, record.answer, record.image_name) == (content["description"], content["answer"], content["image_name"])
        assert (record.height, record.width) == SHAPES[number % len(SHAPES)]
        assert record.image_bytes == (lasers_folder / "train/images" / content["image_name"]).read_bytes()
        for mask, expected in zip(record.masks, row_masks(number), strict=True):
            np.testing.assert_array_equal(decode(mask), expected)
        assert Record.from_example(record.to_example(), "r") == record


def test_both_names_of_the_training_file(lasers_copy):
    annotations = lasers_copy / "train/annotations"
    (annotations / "train_ann.json").rename(annotations / "train_data.json")
    assert {row.source for row in read_rows(lasers_copy, "train")} == {"train/annotations/train_data.json"}
    (annotations / "train_ann.json").write_text("[]")
    with pytest.raises(UserError, match=r"holds both of train_ann\.json and train_data\.json"):
        read_rows(lasers_copy, "train")
    for file in annotations.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="holds neither of"):
        read_rows(lasers_copy, "train")


def test_evaluation_records(lasers_folder):
    assert lasers.benchmarks(lasers_folder) == ["test_short_query"]
    records = lasers.evaluation_records(lasers_folder, "test_short_query")
    assert [record.record_id for record in records] == ["row0", "row1", "row2"]
    for number, record in enumerate(records):
        assert record.benchmark == "test_short_query"
        assert record.instruction == annotation(number)["description"]
        image, masks = record.load()
        assert image.shape == (*SHAPES[number], 3)
        np.testing.assert_array_equal(masks, row_masks(number))
    with pytest.raises(UserError, match="no benchmark is called 'short'; there are test_short_query"):
        lasers.evaluation_records(lasers_folder, "short")


def test_masks_may_be_withheld_in_the_test_split_only(lasers_copy):
    change(lasers_copy, "test", "test_short_query.json", 1, mask=None, answer=None)
    record = lasers.evaluation_records(lasers_copy, "test_short_query")[1]
    assert record.load()[1] is None
    assert record.answer is None
    record = read_rows(lasers_copy, "test")[1].load()
    assert Record.from_example(record.to_example(), "r") == record
    change(lasers_copy, mask=None)
    with pytest.raises(UserError, match="row 'row0': has no mask"):
        read_rows(lasers_copy, "train")


@pytest.mark.parametrize("name", ["../../secret.png", "area/../../../secret.png", "/etc/hostname", "..", "link/secret.png", "a\0b", ""])
def test_image_paths_may_not_leave_the_folder(lasers_copy, name):
    Image.new("RGB", SHAPES[0][::-1]).save(lasers_copy / "secret.png")
    os.symlink(lasers_copy, lasers_copy / "train/images/link")
    change(lasers_copy, image_name=name)
    with pytest.raises(UserError, match=r"row 'row0': (image_name .* leaves the folder|image .* does not exist)") as raised:
        read_rows(lasers_copy, "train")
    assert "leaves" in str(raised.value) or name == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_name": None}, "image_name must be a text, it is missing"),
        ({"image_name": 7}, "image_name must be a text, it is int"),
        ({"image_name": "area/9.png"}, "image .*9.png does not exist"),
        ({"description": None}, "description must be a text, it is missing"),
        ({"description": " \n"}, "description is empty"),
        ({"description": "\ud800"}, "lone surrogates"),
        ({"answer": None}, "answer must be a text"),
        ({"answer": "[SEG] and [SEG]"}, r"the answer has 2 \[SEG\], but there are 0 masks"),
        ({"mask": "x"}, "mask must be a list"),
        ({"mask": [encode(np.ones((40, 64)))]}, r"the answer has 0 \[SEG\], but there are 1 masks"),
        ({"id": [1]}, "id must be a text or a whole number"),
    ],
)
def test_a_wrong_row_is_named(lasers_copy, content, message):
    change(lasers_copy, **content)
    with pytest.raises(UserError, match=rf"train_ann\.json: (row 'row0'|entry 0): .*{message}") as raised:
        read_rows(lasers_copy, "train")
    assert "\n" not in str(raised.value)


def test_what_only_the_image_tells_is_checked_with_it(lasers_copy):
    change(lasers_copy, number=1, mask=[encode(np.ones((40, 64)))])
    with pytest.raises(UserError, match=r"row 'row1': mask 0 is 40 x 64, its image 64 x 40"):
        read_rows(lasers_copy, "train")[1].load()
    image = lasers_copy / "train/images/area/2.png"
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(UserError, match=r"2\.png: is damaged or cut short"):
        read_rows(lasers_copy, "train")[2].load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON file"),
        ("[{]", "not a JSON file"),
        ("{}", "expected a JSON list"),
        ("[]", "hold no row"),
        ("[3]", "entry 0: "),
    ],
)
def test_a_wrong_file_is_named(lasers_copy, text, message):
    (lasers_copy / "train/annotations/train_ann.json").write_text(text)
    with pytest.raises(UserError, match=rf"train/annotations.*: .*{message}"):
        read_rows(lasers_copy, "train")


def test_a_benchmark_without_rows(lasers_copy):
    (lasers_copy / "test/annotations/test_part_level.json").write_text("[]")
    assert lasers.evaluation_records(lasers_copy, "test_part_level") == []
    assert len(read_rows(lasers_copy, "test")) == 3


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing: no such folder"):
        read_rows(tmp_path / "nothing", "train")
    with pytest.raises(UserError, match="holds no annotation file"):
        lasers.benchmarks(tmp_path)


def test_rows_without_an_id_have_their_number(lasers_copy):
    change(lasers_copy, number=4, id=None)
    change(lasers_copy, number=5, id=17)
    assert [row.record_id for row in read_rows(lasers_copy, "train")][3:7] == ["row3", "4", "17", "row6"]


@pytest.mark.parametrize(("missing", "message"), [("instruction", "lacks the feature 'instruction'"), ("image/height", "image/height")])
def test_an_example_of_something_else_is_refused(lasers_folder, missing, message):
    from data_pipeline.tf_example import decode_example, encode_example

    features = decode_example(read_rows(lasers_folder, "train")[0].load().to_example())
    del features[missing]
    with pytest.raises(UserError, match=f"^shard 1: not a record of this pipeline .*{message}"):
        Record.from_example(encode_example(features), "shard 1")
    with pytest.raises(UserError, match=r"^shard 1: not a record"):
        Record.from_example(b"\xff\xff", "shard 1")


def test_real_images_in_the_published_layout(data_dir):
    folder = data_dir / "lasers_sample"
    assert len(lasers.benchmarks(folder)) == 8
    records = lasers.evaluation_records(folder, "test_multi_cate")
    assert len(records) == 4
    for record in records:
        image, masks = record.load()
        assert masks.shape == (record.answer.count("[SEG]"), *image.shape[:2])
        assert masks.any((1, 2)).all()


def test_a_wrong_row_is_rejected_and_the_others_are_read(lasers_copy):
    change(lasers_copy, number=3, description=" ")
    change(lasers_copy, number=5, id=1.5)
    rows = list(lasers.read(lasers_copy, "train"))
    assert len(rows) == 11
    assert {number: str(row).removeprefix(f"{lasers_copy}/") for number, row in enumerate(rows) if isinstance(row, Rejection)} == {
        3: "train/annotations/train_ann.json: row 'row3': description is empty",
        5: "train/annotations/train_ann.json: entry 5: id must be a text or a whole number",
    }


def test_tags_come_from_the_row_and_from_the_test_file(lasers_copy):
    change(lasers_copy, tags={"granularity": "part", "category": "wing"})
    change(lasers_copy, "test", "test_short_query.json", 1, tags={"reasoning": "implicit"})
    record = read_rows(lasers_copy, "train")[0].load()
    assert record.tags == Tags(granularity="part", category="wing")
    assert Record.from_example(record.to_example(), "r") == record
    assert [row.tags for row in read_rows(lasers_copy, "test")] == [
        Tags(language="short"),
        Tags(language="short", reasoning="implicit"),
        Tags(language="short"),
    ]
    change(lasers_copy, tags={"granularity": "whole"})
    with pytest.raises(UserError, match="row 'row0': tags: granularity must be one of semantic, instance, part, it is 'whole'"):
        read_rows(lasers_copy, "train")
