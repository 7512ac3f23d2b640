"""RRSIS-D is read in the form of its official loader, and what is wrong in it is said with file and row."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from source_example import HEIGHT, WIDTH, annotations, blob, loaded, picture, reasons

from data_pipeline.schema import Tags
from data_pipeline.sources.rrsis_d import IMAGES, INSTANCES, REFERENCES, SOURCE
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster.rle import encode

ROWS = 6


def reference(number: int) -> dict:
    return {
        "ref_id": 100 + number,
        "ann_id": 200 + number,
        "image_id": 300 + number,
        "category_id": 1 + number % 2,
        "file_name": f"{number:05d}.jpg",
        "split": ("train", "val", "test")[number % 3],
        "sent_ids": [number],
        "sentences": [
            {"sent_id": number, "raw": f"The ship number {number} ", "sent": f"the ship number {number}", "tokens": ["the", "ship"]}
        ],
    }


def instances() -> dict:
    return {
        "info": {},
        "images": [{"id": 300 + n, "file_name": f"{n:05d}.jpg", "height": HEIGHT, "width": WIDTH} for n in range(ROWS)],
        "annotations": [
            {"id": 200 + n, "image_id": 300 + n, "categories_id": 1, "bbox": [0, 0, 1, 1], "segmentation": [encode(blob(n))]}
            for n in range(ROWS)
        ],
        "categories": [{"id": 1, "name": "airplane"}, {"id": 2, "name": "ship"}],
    }


class DataSet:
    """The files of a data set on disk, to be changed and written again."""

    def __init__(self, folder):
        self.folder = folder
        self.references = [reference(number) for number in range(ROWS)]
        self.instances = instances()
        for number in range(ROWS):
            picture(folder / IMAGES / f"{number:05d}.jpg")
        self.write()

    def write(self):
        (self.folder / "rrsisd").mkdir(exist_ok=True)
        (self.folder / REFERENCES).write_bytes(pickle.dumps(self.references, protocol=2))
        (self.folder / INSTANCES).write_text(json.dumps(self.instances))


@pytest.fixture
def data(tmp_path):
    return DataSet(tmp_path)


def test_references_become_records(data):
    assert SOURCE.present(data.folder) == ("train", "val", "test")
    for split, numbers in (("train", [0, 3]), ("val", [1, 4]), ("test", [2, 5])):
        rows = annotations(SOURCE, data.folder, split)
        assert [row.record_id for row in rows] == [str(100 + number) for number in numbers]
        for row, number in zip(rows, numbers, strict=True):
            record, masks = loaded(row)
            assert (record.instruction, record.answer) == (f"The ship number {number}", "Sure, it is [SEG].")
            assert record.image_bytes == (data.folder / IMAGES / f"{number:05d}.jpg").read_bytes()
            assert record.source == "rrsisd/refs(unc).p"
            category = ("airplane", "ship")[number % 2]
            assert record.tags == Tags("instance", "single", "explicit", category=category)
            np.testing.assert_array_equal(masks, [blob(number)])


def test_each_sentence_is_a_row(data):
    data.references[0]["sentences"].append({"sent": "the other ship"})
    data.write()
    rows = annotations(SOURCE, data.folder, "train")
    assert [(row.record_id, row.instruction) for row in rows][:2] == [("100", "The ship number 0"), ("100/1", "the other ship")]
    np.testing.assert_array_equal(loaded(rows[1])[1], [blob(0)])


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (encode(blob(7)), blob(7)),
        ([encode(blob(7)), encode(blob(8))], blob(7) | blob(8)),
        ([[2, 3, 6, 3, 6, 8, 2, 8]], np.pad(np.ones((5, 4)), ((3, HEIGHT - 8), (2, WIDTH - 6)))),
    ],
)
def test_every_form_of_a_coco_segmentation(data, segmentation, expected):
    data.instances["annotations"][0]["segmentation"] = segmentation
    data.write()
    np.testing.assert_array_equal(loaded(annotations(SOURCE, data.folder, "train")[0])[1], [expected])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "Train"}, "row '100': split must be one of train, val, test, it is 'Train'"),
        ({"split": None}, "row '100': split must be one of train, val, test, it is None"),
        ({"split": ["train"]}, "row '100': split must be one of train, val, test, it is of type list"),
        ({"ref_id": None}, "entry 0: ref_id must be a whole number, it is missing"),
        ({"ref_id": 1.5}, "entry 0: ref_id must be a whole number, it is 1.5"),
        ({"ann_id": 999}, "row '100': rrsisd/instances.json holds no ann_id 999"),
        ({"ann_id": "200"}, "row '100': ann_id must be a whole number, it is '200'"),
        ({"ann_id": 201}, "row '100': its ann_id lies on image 301, its image_id is 300"),
        ({"image_id": 999}, "row '100': rrsisd/instances.json holds no image_id 999"),
        ({"sentences": []}, "row '100': sentences must be a list of at least one sentence"),
        ({"sentences": "the ship"}, "row '100': sentences must be a list"),
        ({"sentences": ["the ship"]}, "row '100': sentence 0 must be a dict, it is str"),
        ({"sentences": [{"raw": " "}]}, "row '100': raw is empty"),
        ({"sentences": [{"raw": 3}]}, "row '100': raw must be a text, it is int"),
        ({"sentences": [{"tokens": []}]}, "row '100': sent must be a text, it is missing"),
        ({"sentences": [{"raw": "\ud800"}]}, "row '100': raw holds characters that are no text (lone surrogates)"),
    ],
)
def test_a_wrong_reference_is_named(data, change, message):
    data.references[0].update(change)
    data.write()
    (reason,) = reasons(SOURCE, data.folder, "train")
    assert reason.startswith(f"rrsisd/refs(unc).p: {message}")
    assert len(list(SOURCE.read(data.folder, "train"))) == 2
    assert not reasons(SOURCE, data.folder, "val")


def test_a_reference_of_another_kind_is_named(data):
    data.references[0] = ["train"]
    data.write()
    assert reasons(SOURCE, data.folder, "train") == ["rrsisd/refs(unc).p: entry 0: expected a dict, it is list"]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "segmentation must be a list of run-length encodings or polygons"),
        ([], "segmentation must be a list of run-length encodings or polygons"),
        ("0", "segmentation must be a list"),
        ([3], "must be a list of run-length encodings or of polygons"),
        ([[1, 2, 3]], "must be a list of run-length encodings or of polygons"),
        ([[1, 2], {}], "must be a list of run-length encodings or of polygons"),
    ],
)
def test_a_wrong_segmentation_is_named(data, segmentation, message):
    data.instances["annotations"][0]["segmentation"] = segmentation
    data.write()
    (reason,) = reasons(SOURCE, data.folder, "train")
    assert message in reason
    assert reason.startswith("rrsisd/refs(unc).p: row '100': ")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        # Some published images are a pixel larger than their masks.
        ([encode(blob(0, HEIGHT, WIDTH - 1))], r"mask 0 is 30 x 39, its image 30 x 40 \(height x width\)"),
        ([{"size": [HEIGHT, WIDTH], "counts": "0"}], "mask 0: the RLE's runs cover 0 pixels"),
        ([{"size": [HEIGHT, WIDTH], "counts": 7}], "mask 0: the RLE's counts must be a string"),
        ([[1, 2, 3, 4]], "mask 0: a polygon has at least three points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "mask 0: a polygon is a list of points"),
        ([[1, 2, 3, "4", 5, []]], "mask 0: a polygon is a list of points"),
    ],
)
def test_what_only_the_image_tells_is_said_with_it(data, segmentation, message):
    data.instances["annotations"][0]["segmentation"] = segmentation
    data.write()
    with pytest.raises(UserError, match=rf"refs\(unc\)\.p: row '100': {message}"):
        annotations(SOURCE, data.folder, "train")[0].load()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../../secret.jpg", "leaves the folder"),
        ("/etc/hostname", "leaves the folder"),
        ("absent.jpg", "image .*absent.jpg does not exist"),
        ("a\0b", "leaves the folder"),
        ("", "file_name is empty"),
        (None, "file_name must be a text, it is missing"),
    ],
)
def test_wrong_image_names(data, name, message):
    picture(data.folder / "secret.jpg")
    data.instances["images"][0]["file_name"] = name
    data.write()
    with pytest.raises(UserError, match=f"row '100': .*{message}"):
        annotations(SOURCE, data.folder, "train")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("images", None, "images must be a list, it is missing"),
        ("annotations", {}, "annotations must be a list, it is dict"),
        ("categories", [3], "categories 0: expected an object of named fields, it is int"),
        ("images", [{}], "images 0: id must be a whole number, it is missing"),
        ("categories", [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "categories 1: the id 1 occurs twice"),
    ],
)
def test_wrong_instances_are_named(data, part, value, message):
    data.instances[part] = value
    data.write()
    with pytest.raises(UserError, match=rf"rrsisd/instances\.json: {message}"):
        annotations(SOURCE, data.folder, "train")


def test_damaged_files_are_named(data):
    for content in (b"", b'{"images": [', b"[]", b"\xff\xfe"):
        (data.folder / INSTANCES).write_bytes(content)
        with pytest.raises(UserError, match=r"rrsisd/instances\.json: "):
            annotations(SOURCE, data.folder, "train")
    data.write()
    whole = (data.folder / REFERENCES).read_bytes()
    for content in (b"", whole[:-20], pickle.dumps({"a": 1}), pickle.dumps([print])):
        (data.folder / REFERENCES).write_bytes(content)
        with pytest.raises(UserError, match=r"rrsisd/refs\(unc\)\.p: "):
            annotations(SOURCE, data.folder, "train")
    data.references = [reference(0)]
    data.write()
    with pytest.raises(UserError, match="holds no reference of the split 'test'"):
        annotations(SOURCE, data.folder, "test")
    for part in (INSTANCES, REFERENCES):
        (data.folder / part).unlink()
        with pytest.raises(UserError, match="does not exist; expected the RRSIS-D layout"):
            SOURCE.present(data.folder)
