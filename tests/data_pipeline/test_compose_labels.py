"""What `compose` reads: class tables, rasters and COCO files, and every kind of damage to them as one line that names the file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from label_folder import CLASSES, arguments, rows_of, write_folder
from PIL import Image

from data_pipeline.compose.__main__ import main
from data_pipeline.compose.classes import PRESETS, load_classes
from data_pipeline.compose.coco import CocoLabels
from data_pipeline.compose.rasters import components, holes, read_classes, read_numbers
from data_pipeline.grammar.references import all_references
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster import rle


def _table(tmp_path, **changes):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(copy.deepcopy(CLASSES) | changes))
    return load_classes(str(path))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_speak_in_words_of_the_lexicon(name):
    table = load_classes(name)
    assert len(table.entries) >= 5
    assert all(entry.counted or not entry.instances for entry in table.entries.values())
    assert "building" in table.entries
    assert table.entries["building"].instances


def test_names_are_read_in_the_spelling_of_label_sets(tmp_path):
    names = ["Impervious_surfaces", "large-vehicle", "Buildings", "harbor", "soccer ball field", "asphalt", "Agricultural"]
    table = _table(tmp_path, classes=[{"id": n, "name": name} for n, name in enumerate(names, 1)])
    assert [info.category for info in table.classes] == [
        "paved ground", "large vehicle", "building", "harbour", "football pitch", "asphalt area", "farmland",
    ]  # fmt: skip
    assert table.entries["asphalt area"].every == "all asphalt areas"
    assert not table.entries["asphalt area"].instances
    assert table.entries["large vehicle"].instances


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": []}, "classes"),
        ({"classes": {}}, "classes"),
        ({"classes": [3]}, "class 0"),
        ({"classes": [{"name": "building"}]}, "an id or a colour"),
        ({"classes": [{"id": -1, "name": "building"}]}, "whole number"),
        ({"classes": [{"id": True, "name": "building"}]}, "whole number"),
        ({"classes": [{"id": 1, "name": "building"}, {"id": 1, "name": "road"}]}, "same id"),
        ({"classes": [{"colour": [1, 2, 3], "name": "building"}, {"colour": [1, 2, 3], "name": "road"}]}, "same colour"),
        ({"classes": [{"id": 1, "name": "<b>"}]}, "cannot be said"),
        ({"classes": [{"id": 1, "name": ""}]}, "cannot be said"),
        ({"classes": [{"id": 1, "name": "building", "kind": "object"}]}, "kind must be"),
        ({"classes": [{"id": 1, "name": "water", "kind": "thing"}]}, 'must be "stuff"'),
        ({"classes": [{"id": 1, "name": "building", "color": [1, 2, 3]}]}, "color is not known"),
        ({"classes": [{"id": 1, "name": "building", "colour": [1, 2, 300]}]}, "three numbers"),
        ({"classes": [{"id": 1, "name": "background"}]}, "nothing to ask for"),
        ({"ignore": 0}, "ignore must be a list"),
        ({"ignore_colours": [3]}, "three numbers"),
        ({"ignore_strip": -1}, "ignore_strip"),
        ({"parts": [{"id": 0, "name": "roof"}]}, "no part"),
        ({"parts": [{"id": 1}]}, "part 0"),
        ({"parts": [{"id": 1, "name": "roof"}, {"id": 2, "name": "Roof"}]}, "same name"),
        ({"extra": 1}, "extra is not known"),
    ],
)
def test_a_damaged_class_file_is_one_line_that_names_it(changes, said, tmp_path):
    with pytest.raises(UserError) as error:
        _table(tmp_path, **changes)
    assert str(error.value).startswith(str(tmp_path / "classes.json"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_left_and_a_right_part_make_a_pair(tmp_path):
    table = _table(
        tmp_path, parts=[{"id": 3, "name": "left wing"}, {"id": 5, "name": "right wing"}, {"id": 6, "name": "wheels", "plural": True}]
    )
    words = {word.noun: (word.numbers, word.plural, word.side) for word in table.parts}
    assert words == {
        "wings": ((3, 5), True, None),
        "left wing": ((3,), False, "left"),
        "right wing": ((5,), False, "right"),
        "wheels": ((6,), True, None),
    }


def _save(array: np.ndarray, path: Path, mode: str | None = None) -> Path:
    Image.fromarray(array, mode).save(path)
    return path


def test_numbers_palettes_deep_rasters_and_colours_are_read_alike(tmp_path):
    table = _table(tmp_path)
    numbers = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    lut = np.array([[9, 9, 9]] + [row["colour"] for row in CLASSES["classes"]], np.uint8)
    palette = Image.fromarray(numbers, "P")
    palette.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
    palette.save(tmp_path / "palette.png")
    coloured = _table(tmp_path, ignore_colours=[[9, 9, 9]])
    expected = numbers.astype(np.int32)
    assert (read_classes(_save(numbers, tmp_path / "grey.png"), table) == expected).all()
    assert (read_classes(tmp_path / "palette.png", table) == expected).all()
    assert (read_classes(_save(numbers.astype(np.uint16), tmp_path / "deep.png"), table) == expected).all()
    assert (read_classes(_save(numbers.astype(np.float32), tmp_path / "float.tif"), table) == expected).all()
    assert (read_classes(_save(lut[numbers], tmp_path / "colours.png"), coloured) == expected).all()
    assert (read_numbers(_save(numbers.astype(np.int32) * 70000, tmp_path / "large.tif")) == numbers.astype(np.int64) * 70000).all()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((4, 4), 77, np.uint8), "the value 77"),
        (np.full((4, 4), 1.5, np.float32), "fractions"),
        (np.full((4, 4), np.nan, np.float32), "fractions"),
        (np.full((4, 4), -3, np.int32), "the value -3"),
        (np.full((4, 4, 3), 7, np.uint8), "the value (7, 7, 7)"),
    ],
)
def test_a_value_that_no_class_has_is_said(array, said, tmp_path):
    path = _save(array, tmp_path / "label.tif")
    with pytest.raises(UserError) as error:
        read_classes(path, _table(tmp_path))
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)


def test_a_damaged_raster_is_said(tmp_path):
    path = _save(np.ones((40, 40), np.uint8), tmp_path / "label.png")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"label\.png"):
        read_classes(path, _table(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        read_numbers(tmp_path / "nothing.png")


@pytest.mark.parametrize("strip", [1, 2, 5, 8])
def test_strips_hide_nothing_and_wider_regions_may(strip):
    image = np.ones((60, 60, 3), np.uint8)
    for width in range(1, 14):
        for turned in (False, True):
            ignored = np.zeros((60, 60), bool)
            ignored[20 : 20 + width, 10:50] = True
            ignored = ignored.T if turned else ignored
            assert holes(ignored, image, strip).sum() == (ignored.sum() if width > strip else 0)
    assert not holes(ignored, np.zeros_like(image), strip).any()
    at_edge = np.zeros((60, 60), bool)
    at_edge[: strip + 1] = True
    assert holes(at_edge, image, strip).sum() == at_edge.sum()


def test_components_join_corners():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    assert components(mask)[1] == 3


def _square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def _coco() -> dict:
    crowd = np.zeros((100, 140), np.uint8)
    crowd[0:10, 0:10] = 1
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 100, "width": 140},
            {"id": 2, "file_name": "b.png", "height": 100, "width": 140},
        ],
        "categories": [
            {"id": 3, "name": "plane"},
            {"id": 4, "name": "wing", "parent": "plane"},
            {"id": 5, "name": "nose", "parent": 3},
            {"id": 7, "name": "storage-tank"},
            {"id": 8, "name": "wheel loader"},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 3, "segmentation": _square(10, 10, 40)},
            {"image_id": 1, "category_id": 4, "segmentation": _square(12, 12, 8)},
            {"image_id": 1, "category_id": 4, "segmentation": _square(12, 30, 8)},
            {"image_id": 1, "category_id": 5, "segmentation": _square(35, 20, 30)},
            {"image_id": 1, "category_id": 7, "segmentation": _square(80, 60, 20)},
            {"image_id": 1, "category_id": 8, "segmentation": _square(85, 65, 5)},
            {"image_id": 2, "category_id": 7, "segmentation": _square(80, 60, 20)},
            {"image_id": 2, "category_id": 7, "segmentation": rle.encode(crowd), "iscrowd": 1},
        ],
    }


def _write_coco(tmp_path, content) -> Path:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_instances_lie_on_top_of_larger_ones_and_own_their_parts(tmp_path):
    labels = CocoLabels(_write_coco(tmp_path, _coco()), None)
    assert list(labels.entries) == ["plane", "storage tank", "wheel loader"]
    found = labels.of_picture("a.png").read("a.png", np.ones((100, 140, 3), np.uint8))
    assert [thing.category for thing in found.objects] == ["plane", "storage tank", "wheel loader"]
    areas = np.bincount(found.object_map.ravel())[1:]
    assert areas.tolist() == [1600, 400 - 25, 25]
    words = {r.words: r.targets for r in all_references(found.facts(labels.entries, labels.parts)) if not r.implicit}
    masks = {phrase: np.isin(found.part_map, words[phrase][0].parts) for phrase in ("the wings of the plane", "the nose of the plane")}
    assert masks["the wings of the plane"].sum() == 128
    # What lies outside of the plane is none of it.
    assert masks["the nose of the plane"].sum() == 15 * 30
    assert "the wing of the plane" not in words
    assert "the wheel loader" in words


def test_a_crowd_may_show_anything(tmp_path):
    labels = CocoLabels(_write_coco(tmp_path, _coco()), None)
    found = labels.read("b.png", np.ones((100, 140, 3), np.uint8))
    assert found.unknown.sum() == 100
    phrases = [r.words for r in all_references(found.facts(labels.entries, labels.parts)) if not r.implicit]
    assert phrases == ["the storage tank in the lower right"] or phrases == []


def test_coco_end_to_end(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        _save(np.full((100, 140, 3), ord(name[0]), np.uint8), tmp_path / "images" / name)
    content = _coco()
    content["annotations"].pop()
    files = ["--images", tmp_path / "images", "--coco", _write_coco(tmp_path, content), "--output", tmp_path / "set"]
    assert main([*map(str, files), "--workers", "0", "--test-share", "0", "--records", "20"]) == 0
    rows = rows_of(tmp_path / "set", "train")
    assert {row["tags"]["granularity"] for row in rows} == {"semantic", "instance", "part"}
    assert any("storage tank" in row["description"] for row in rows)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: c.pop("images"), "COCO instance file"),
        (lambda c: c["categories"].append({"id": 3, "name": "ship"}), "twice"),
        (lambda c: c["categories"].append({"id": 9}), "category 5"),
        (lambda c: c["categories"].append({"id": 9, "name": "tip", "parent": "wing"}), "is a part itself"),
        (lambda c: c["categories"].append({"id": 9, "name": "tip", "parent": "car"}), "no other category"),
        (lambda c: c["images"].append(c["images"][0]), "twice"),
        (lambda c: c["images"][0].pop("height"), "image 0"),
        (lambda c: c["annotations"][0].pop("segmentation"), "annotation 0"),
        (lambda c: c["annotations"][0].update(image_id=99), "annotation 0: no image"),
        (lambda c: c["annotations"][0].update(image_id=[1]), "annotation 0: no image"),
        (lambda c: c["annotations"][0].update(category_id=99), "annotation 0: no category"),
        (lambda c: c["annotations"][0].update(segmentation=[]), "annotation 0: segmentation"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "annotation 0: segmentation"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, "6"]]), "annotation 0: segmentation"),
        (lambda c: c["annotations"][0].update(segmentation=_square(500, 500, 5)), "annotation 0: segmentation"),
        (lambda c: c["annotations"][0].update(segmentation={"size": [5, 5], "counts": "x"}), "annotation 0: segmentation"),
        (lambda c: c["images"][0].update(height=101), "101"),
    ],
)
def test_damage_to_a_coco_file_is_one_line_that_names_it(damage, said, tmp_path):
    content = _coco()
    damage(content)
    path = _write_coco(tmp_path, content)
    with pytest.raises(UserError) as error:
        CocoLabels(path, None).read("a.png", np.ones((100, 140, 3), np.uint8))
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (lambda f: (f / "labels" / "tile_0.png").unlink(), (), "tile_0"),
        (lambda f: _save(np.ones((5, 5), np.uint8), f / "labels" / "tile_0.png"), (), "5 x 5"),
        (lambda f: _save(np.ones((5, 5, 3), np.uint8), f / "images" / "tile_0.jpg"), (), "differ only in their ending"),
        (lambda f: (f / "images" / "tile_0.png").write_bytes(b"nothing"), (), "tile_0.png"),
        (lambda f: _save(np.ones((5, 5), np.uint8), f / "labels" / "tile_0.tif"), (), "two files"),
        (lambda f: None, ("--records", "0"), "--records"),
        (lambda f: None, ("--test-share", "1.5"), "--test-share"),
        (lambda f: None, ("--workers", "-1"), "--workers"),
        (lambda f: None, ("--classes", "loveta"), "presets are loveda"),
        (lambda f: None, ("--coco", "x.json"), "one of them"),
        (lambda f: None, ("--parts", "x"), "--parts"),
        (lambda f: None, ("--instances", "nowhere"), "--instances"),
        (lambda f: (f / "set").mkdir() or (f / "set" / "a").write_text(""), (), "not empty"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing_behind(change, more, said, tmp_path, capsys):
    folder = write_folder(tmp_path, 2)
    change(folder)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(arguments(folder, folder / "set", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before
