"""A folder of one's own: every form of mask, answers that follow from the masks, tags, splits, and every kind of damage."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from source_example import HEIGHT, WIDTH, annotations, blob, loaded, mask_picture, picture, reasons

from data_pipeline.schema import Tags
from data_pipeline.sources.folder import SOURCE
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster.rle import encode

SQUARE = [[2, 3], [6, 3], [6, 8], [2, 8]]
SQUARE_MASK = np.pad(np.ones((5, 4), np.uint8), ((3, HEIGHT - 8), (2, WIDTH - 6)))
STRIPE_MASK = np.pad(np.ones((1, 4), np.uint8), ((20, HEIGHT - 21), (20, WIDTH - 24)))


def row(**changes) -> dict:
    content = {"id": "x", "image": "images/a.png", "instruction": "the ships", "masks": [encode(blob(0))], **changes}
    return {key: value for key, value in content.items() if value is not ...}


def write(folder, *rows, file="annotations.jsonl"):
    (folder / file).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "images/a.png")
    mask_picture(tmp_path / "masks/a.png", blob(1))
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    classes[blob(2) == 1] = 3
    classes[0] = 9
    Image.fromarray(classes).save(tmp_path / "masks/classes.png")
    write(tmp_path, row())
    return tmp_path


def one_record(folder, **changes):
    write(folder, row(**changes))
    (annotation,) = annotations(SOURCE, folder, "train")
    return loaded(annotation)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (encode(blob(0)), blob(0)),
        ({"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}, np.zeros((HEIGHT, WIDTH))),
        ("masks/a.png", blob(1)),
        ({"image": "masks/a.png"}, blob(1)),
        ({"image": "masks/classes.png", "values": [3]}, blob(2)),
        ({"polygon": SQUARE}, SQUARE_MASK),
        ({"polygons": [SQUARE, [[20, 20], [24, 20], [24, 21], [20, 21]]]}, SQUARE_MASK | STRIPE_MASK),
    ],
)
def test_every_form_of_mask(folder, mask, expected):
    record, masks = one_record(folder, masks=[mask])
    np.testing.assert_array_equal(masks, [expected])
    assert (record.instruction, record.answer) == ("the ships", "Sure, it is [SEG].")
    assert (record.record_id, record.source, record.image_name) == ("x", "annotations.jsonl", "images/a.png")


def test_answers(folder):
    mask = encode(blob(0))
    for masks, answer, expected in (
        ([mask], "It is the [SEG].", "It is the [SEG]."),
        ([mask], None, "Sure, it is [SEG]."),
        ([mask] * 2, None, "Sure, it is [SEG] and [SEG]."),
        ([mask] * 3, ..., "Sure, it is [SEG], [SEG] and [SEG]."),
        ([], ..., "There is no target object in the image."),
        ([], "There are no ships.", "There are no ships."),
        (..., "There are no ships.", "There are no ships."),
    ):
        record, found = one_record(folder, masks=masks, answer=answer)
        assert record.answer == expected
        assert len(found) == (0 if masks is ... else len(masks))


def test_tags(folder):
    assert one_record(folder)[0].tags == Tags()
    assert one_record(folder, tags=None)[0].tags == Tags()
    assert one_record(folder, tags={"granularity": "part", "category": "wing", "mood": 3})[0].tags == Tags("part", category="wing")
    # In a list, words that name no dimension's value are a person's own.
    listed = one_record(folder, tags=["implicit", "short", "semantic", "geotiff", 3])[0].tags
    assert listed == Tags(granularity="semantic", reasoning="implicit", language="short")


def test_splits_and_files(folder):
    write(folder, row(id=1), row(id=..., split="val"), row(id="t", split="test", masks=...), row(id=None, split="train"))
    write(folder, row(id="b", split="test", masks=None, answer="It is [SEG]."), file="b.jsonl")
    assert SOURCE.present(folder) == ("train", "val", "test")
    assert [r.record_id for r in annotations(SOURCE, folder, "train")] == ["1", "annotations/4"]
    assert [r.record_id for r in annotations(SOURCE, folder, "val")] == ["annotations/2"]
    rows = annotations(SOURCE, folder, "test")
    assert [(r.record_id, r.answer, r.targets) for r in rows] == [("t", None, None), ("b", "It is [SEG].", None)]
    assert loaded(rows[0])[0].masks is None
    write(folder, row(split="test"))
    assert SOURCE.present(folder) == ("test",)
    with pytest.raises(UserError, match="hold no row of the split 'train'"):
        annotations(SOURCE, folder, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": ...}, "instruction must be a text, it is missing"),
        ({"instruction": 3}, "instruction must be a text, it is int"),
        ({"instruction": " \n"}, "instruction is empty"),
        ({"instruction": "\ud800"}, "instruction holds characters that are no text (lone surrogates)"),
        ({"answer": 3}, "answer must be a text, it is int"),
        ({"answer": "\ud800"}, "answer holds characters that are no text (lone surrogates)"),
        ({"answer": "They are [SEG] and [SEG]."}, "the answer has 2 [SEG], but there are 1 masks"),
        ({"masks": []} | {"answer": "[SEG]"}, "the answer has 1 [SEG], but there are 0 masks"),
        ({"masks": ...}, "has no masks; training needs a list of one per [SEG] of the answer"),
        ({"masks": ..., "answer": "[SEG]"}, "has no masks; training needs"),
        ({"masks": "masks/a.png"}, "masks must be a list, it is str"),
        ({"masks": [3]}, "mask 0: must be a path, an object or a run-length encoding, it is int"),
        ({"masks": [{"mask": 1}]}, "mask 0: has none of counts, image, polygon, polygons, geojson, type"),
        ({"masks": ["masks/b.png"]}, "mask 0: mask masks/b.png does not exist"),
        ({"masks": ["../secret.png"]}, "mask 0: masks '../secret.png' leaves the folder"),
        ({"masks": [{"image": 3}]}, "mask 0: image must be a text, it is int"),
        ({"masks": [{"image": "/etc/hostname"}]}, "mask 0: image '/etc/hostname' leaves the folder"),
        ({"masks": [{"image": "masks/a.png", "values": []}]}, "mask 0: values must be a list of whole numbers"),
        ({"masks": [{"image": "masks/a.png", "values": [1.5]}]}, "mask 0: values must be a list of whole numbers"),
        ({"masks": [{"image": "masks/a.png", "values": [10**30]}]}, "mask 0: values must be a list of whole numbers"),
        ({"masks": [{"polygons": 3}]}, "mask 0: polygons must be a list of polygons, it is int"),
        ({"masks": ["\ud800"]}, "mask 0: the path holds characters that are no text"),
        ({"image": ...}, "image must be a text, it is missing"),
        ({"image": ""}, "image is empty"),
        ({"image": "images/b.png"}, "image images/b.png does not exist"),
        ({"image": "../secret.png"}, "image '../secret.png' leaves the folder"),
        ({"image": "link/secret.png"}, "image 'link/secret.png' leaves the folder"),
        ({"image": "a\0b"}, "image 'a\\x00b' leaves the folder"),
        ({"tags": "short"}, "tags must be an object, it is str"),
        ({"tags": {"language": "brief"}}, "tags: language must be one of short, long, it is 'brief'"),
        ({"tags": {"category": 3}}, "category must be a text, it is int"),
        ({"tags": ["short", "long"]}, "tags name more than one language: short, long"),
    ],
)
def test_a_wrong_row_is_named(folder, changes, message):
    picture(folder.parent / "secret.png")
    if not (folder / "link").exists():
        os.symlink(folder.parent, folder / "link")
    write(folder, row(id="good"), row(**changes))
    (reason,) = reasons(SOURCE, folder, "train")
    assert reason.replace(str(folder), "folder").startswith(f"annotations.jsonl: line 2: row 'x': {message}")
    assert [r.record_id for r in SOURCE.read(folder, "train") if hasattr(r, "record_id")] == ["good"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x"', "not JSON ("),
        ("3", "expected an object of named fields, it is int"),
        (row(split="Train"), "split must be one of train, val, test, it is 'Train'"),
        (row(split=None), "split must be one of train, val, test, it is None"),
        (row(split=[1]), "split must be one of train, val, test, it is of type list"),
        (row(id=1.5), "id must be a text or a whole number"),
        (row(id="\ud800"), "id holds characters that are no text"),
    ],
)
def test_a_wrong_line_is_named(folder, line, message):
    write(folder, row(id="good"), line, row(id="v", split="val"))
    (reason,) = reasons(SOURCE, folder, "train")
    assert reason.startswith(f"annotations.jsonl: line 2: {message}")
    assert not reasons(SOURCE, folder, "val")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (encode(blob(0, WIDTH, HEIGHT)), r"is 40 x 30, its image 30 x 40 \(height x width\)"),
        ({"counts": "0"}, "an RLE mask is"),
        ({"size": [HEIGHT, WIDTH], "counts": "0"}, "the RLE's runs cover 0 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [0, float("nan")]}, "the RLE's counts must be whole numbers"),
        ({"polygon": []}, "a polygon is a list of points"),
        ({"polygon": "x"}, "a polygon is a list of points"),
        ({"polygon": [[1, 2], [3, 4]]}, "a polygon has at least three points"),
        ({"polygon": [[1, 2], [3, float("inf")], [4, 4]]}, "a polygon is a list of points"),
        ({"polygons": []}, "has no polygon"),
        ({"polygon": [[100, 1], [101, 1], [101, 2]]}, "outside of its image"),
        ("annotations.jsonl", "is not a readable picture"),
        ("images/a.png", "has 3 different bands; a mask has one"),
    ],
)
def test_masks_that_do_not_fit(folder, mask, message):
    write(folder, row(masks=[encode(blob(0)), mask]))
    with pytest.raises(UserError, match=rf"annotations\.jsonl: line 1: row 'x': mask 1.*{message}"):
        annotations(SOURCE, folder, "train")[0].load()


def test_a_wrong_folder_is_named(folder):
    with pytest.raises(UserError, match=r"masks: holds no \*\.jsonl file"):
        SOURCE.present(folder / "masks")
    for content in (b"", b"\n \n", b"[1]\n", b"\xff\xfe\x00"):
        (folder / "annotations.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"its \*\.jsonl files hold no row of a split train, val, test"):
            SOURCE.present(folder)


def test_real_images_with_masks_as_pictures(data_dir, tmp_path):
    """The rows of tiny_eval, whose images lie in other folders: as they are, with everything brought into one folder."""
    rows = [json.loads(line) for line in (data_dir / "tiny_eval/eval.jsonl").read_text().splitlines()]
    for content in rows:
        image = (data_dir / "tiny_eval" / content["image"]).resolve()
        content["image"] = str(image.relative_to(data_dir.resolve()))
        (tmp_path / content["image"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, tmp_path / content["image"])
    shutil.copytree(data_dir / "tiny_eval/masks", tmp_path / "masks")
    write(tmp_path, *rows)
    found = annotations(SOURCE, tmp_path, "train")
    assert [r.record_id for r in found] == [content["id"] for content in rows]
    for annotation, content in list(zip(found, rows, strict=True))[::4]:
        record, masks = loaded(annotation)
        assert [int(mask.sum()) for mask in masks] == content["mask_pixels"]
        assert record.answer.count("[SEG]") == len(masks)
        tags = [record.tags.reasoning, record.tags.language, record.tags.granularity]
        assert [tag for tag in tags if tag is not None] == [tag for tag in content["tags"] if tag in tags]
