"""GeoPixelD: a caption with one [SEG] per object and the polygons of each, beside the patch that it describes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from source_example import HEIGHT, WIDTH, annotations, loaded, picture, reasons

from data_pipeline.schema import Tags
from data_pipeline.sources.geopixeld import INSTRUCTION, SOURCE
from segearth_r2_jax.errors import UserError

CAPTION = "The <p> tennis court-1 </p> [SEG] lies beside <p> two ships </p> [SEG] ."
QUESTION = "Could you describe this picture with masks?"


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """The contour of the pixels left..right, top..bottom, both included."""
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def content(name="P1_0_800", split="train", **changes) -> dict:
    polygons = [[box(2, 3, 8, 9)], [box(20, 5, 25, 8), box(30, 15, 50, 18)]]
    row = {"id": 0, "img": f"data/GeoPixelD/{split}/{name}.png", "gcg_description": CAPTION, "polygons": polygons, **changes}
    return {key: value for key, value in row.items() if value is not None}


def write(folder, name="P1_0_800", split="train", **changes):
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / split / f"{name}.json").write_text(json.dumps(content(name, split, **changes)))


def question(name="P1_0_800", split="train", **changes) -> dict:
    turns = [{"from": "human", "value": QUESTION}, {"from": "bot", "value": CAPTION}]
    paths = {key: f"data/GeoPixelD/{split}/{name}.{suffix}" for key, suffix in (("image", "png"), ("polygons", "json"))}
    return {"id": 0, "conversations": turns, **paths, **changes}


@pytest.fixture
def folder(tmp_path):
    for split, name in (("train", "P1_0_800"), ("train", "P2_0_800"), ("test", "P3_0_800")):
        picture(tmp_path / split / f"{name}.png")
        write(tmp_path, name, split)
    return tmp_path


def test_captions_become_records(folder):
    (folder / "GeoPixelD.json").write_text(json.dumps([question()]))
    assert SOURCE.present(folder) == ("train", "test")
    rows = [*annotations(SOURCE, folder, "train"), *annotations(SOURCE, folder, "test")]
    assert [row.record_id for row in rows] == ["P1_0_800", "P2_0_800", "P3_0_800"]
    assert [row.instruction for row in rows] == [QUESTION, INSTRUCTION, INSTRUCTION]
    expected = np.zeros((2, HEIGHT, WIDTH))
    expected[0, 3:10, 2:9] = 1
    expected[1, 5:9, 20:26] = 1
    expected[1, 15:19, 30:] = 1  # What leaves the patch is cut off.
    for row in rows:
        record, masks = loaded(row)
        assert record.answer == CAPTION
        assert record.tags == Tags(reasoning="explicit")
        assert record.image_name == f"{record.source.partition('/')[0]}/{record.record_id}.png"
        np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gcg_description": None}, "gcg_description must be a text, it is missing"),
        ({"gcg_description": 3}, "gcg_description must be a text, it is int"),
        ({"gcg_description": " "}, "gcg_description is empty"),
        ({"gcg_description": "\ud800"}, "gcg_description holds characters that are no text (lone surrogates)"),
        ({"gcg_description": "One [SEG]."}, "the answer has 1 [SEG], but there are 2 masks"),
        ({"polygons": None}, "polygons must be a list, it is missing"),
        ({"polygons": {}}, "polygons must be a list, it is dict"),
        ({"polygons": []}, "the answer has 2 [SEG], but there are 0 masks"),
        ({"img": None}, "img must be a text, it is missing"),
        ({"img": "data/train/P9.png"}, "img is 'P9.png', expected P1_0_800.png, the file's own name"),
        ({"img": "data/train/P1_0_800.jpg"}, "image train/P1_0_800.jpg does not exist"),
    ],
)
def test_a_wrong_file_is_named(folder, changes, message):
    write(folder, **changes)
    assert reasons(SOURCE, folder, "train") == [f"train/P1_0_800.json: {message}"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"polygons": [[[[1'])
def test_a_damaged_file_is_named(folder, text):
    (folder / "train/P1_0_800.json").write_bytes(text)
    (reason,) = reasons(SOURCE, folder, "train")
    assert reason.startswith("train/P1_0_800.json: ")
    assert [row.record_id for row in SOURCE.read(folder, "train") if hasattr(row, "record_id")] == ["P2_0_800"]


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([], "has no polygon"),
        ("x", "an object must be a list of polygons"),
        ([[]], r"a polygon is a list of points \(x, y\)"),
        ([[[1, 2], [3, 4]]], "a polygon has at least three points, this one has 2"),
        ([[[1, 2], [3, float("inf")], [3, 6]]], r"a polygon is a list of points \(x, y\)"),
        ([[[1, 2], [3, None], [3, 6]]], r"a polygon is a list of points \(x, y\)"),
        ([box(100, 100, 110, 110)], r"has a polygon at \(100, 100\), outside of its image of 40 x 30 pixels"),
    ],
)
def test_polygons_that_do_not_fit(folder, polygons, message):
    write(folder, polygons=[polygons, [box(1, 1, 5, 5)]])
    with pytest.raises(UserError, match=rf"train/P1_0_800\.json: mask 0:? {message}"):
        annotations(SOURCE, folder, "train")[0].load()


def test_images_may_not_lie_elsewhere(folder):
    image = folder / "train/P1_0_800.png"
    image.rename(folder.parent / "P1.png")
    assert reasons(SOURCE, folder, "train") == ["train/P1_0_800.json: image train/P1_0_800.png does not exist"]
    image.symlink_to(folder.parent / "P1.png")
    (reason,) = reasons(SOURCE, folder, "train")
    assert "img 'P1_0_800.png' leaves the folder" in reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a list of conversations"),
        ("[3]", "entry 0: expected an object of named fields, it is int"),
        (json.dumps([question(conversations=[])]), "entry 0: conversations must be a list that begins with the turn of the human"),
        (json.dumps([question(conversations=[{"from": "bot", "value": "x"}])]), "entry 0: conversations must be a list"),
        (json.dumps([question(conversations=[{"from": "human"}])]), "entry 0: value must be a text, it is missing"),
        (json.dumps([question(polygons=3)]), "entry 0: polygons must be a text, it is int"),
        ("[", "not a JSON file"),
    ],
)
def test_wrong_questions_are_named(folder, text, message):
    (folder / "GeoPixelD.json").write_text(text)
    with pytest.raises(UserError, match=rf"GeoPixelD\.json: {message}"):
        annotations(SOURCE, folder, "train")


def test_a_wrong_folder_is_named(folder):
    with pytest.raises(UserError, match="holds neither train/ nor test/"):
        SOURCE.present(folder / "train")
    with pytest.raises(UserError, match="val: no such folder"):
        annotations(SOURCE, folder, "val")
    (folder / "test/P3_0_800.json").unlink()
    with pytest.raises(UserError, match="test: holds no JSON file"):
        annotations(SOURCE, folder, "test")
