"""`python -m data_pipeline.compose`: rasters in, the LaSeRS layout out, true to the labels and the same for any number of processes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from label_folder import arguments, rows_of, write_folder
from PIL import Image

from data_pipeline.annotation import accepted
from data_pipeline.compose.__main__ import main
from data_pipeline.compose.pairing import split_by_image
from data_pipeline.compose.rasters import components
from data_pipeline.grammar.records import CELLS, TEST_FILES
from data_pipeline.sources import lasers
from segearth_r2_jax.raster import rle

NINE_AND_EMPTY = {*TEST_FILES, "test_empty"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("labels"), parts=True)


@pytest.fixture(scope="module")
def composed(folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("composed") / "set"
    more = ("--instances", str(folder / "instances"), "--parts", str(folder / "parts"), "--test-share", "0.3", "--records", "20")
    assert main(arguments(folder, output, *more, "--licence", "CC0-1.0")) == 0
    return output


def _files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def test_the_layout_is_that_of_lasers_and_its_reader_reads_it(composed):
    assert {path.stem for path in (composed / "test" / "annotations").iterdir()} == NINE_AND_EMPTY
    assert [path.name for path in (composed / "train" / "annotations").iterdir()] == ["train_data.json"]
    for split in ("train", "test"):
        records = [annotation.load() for annotation in accepted(lasers.read(composed, split))]
        assert len(records) > 20
        assert all(record.tags.granularity and record.tags.category for record in records)
        assert {record.tags.granularity for record in records} == {"semantic", "instance", "part"}


def test_images_are_copied_untouched_and_stand_in_one_split(composed, folder):
    seen = []
    for split in ("train", "test"):
        for path in (composed / split / "images").iterdir():
            assert path.read_bytes() == (folder / "images" / path.name).read_bytes()
            seen.append(path.name)
    assert sorted(seen) == sorted(path.name for path in (folder / "images").iterdir())


def test_whole_categories_are_exactly_their_pixels(composed, folder):
    values = {"all buildings": 2, "all roads": 3, "all kiosks": 5, "the farm land": 4, "all farm land": 4}
    checked = 0
    for row in rows_of(composed, "train") + rows_of(composed, "test"):
        phrase = re.sub(r"^(Segment|Find|Outline|Show me|I need) |\.$", "", row["description"])
        if phrase in values and row["mask"]:
            classes = _label(folder, "labels", row["image_name"])
            assert (rle.decode(row["mask"][0]).astype(bool) == (classes == values[phrase])).all()
            checked += 1
    assert checked > 5


def test_each_single_thing_is_one_instance_of_the_raster(composed, folder):
    checked = 0
    for row in rows_of(composed, "train") + rows_of(composed, "test"):
        if row["tags"]["granularity"] == "instance":
            instances = _label(folder, "instances", row["image_name"])
            for mask in row["mask"]:
                decoded = rle.decode(mask).astype(bool)
                (number,) = np.unique(instances[decoded])
                assert number
                assert (decoded == (instances == number)).all()
                checked += 1
    assert checked > 30


def test_parts_are_the_pixels_of_that_part_of_one_thing(composed, folder):
    checked = 0
    for row in rows_of(composed, "train") + rows_of(composed, "test"):
        if row["tags"]["granularity"] == "part":
            parts, instances = (_label(folder, name, row["image_name"]) for name in ("parts", "instances"))
            for noun, mask in zip(re.findall(r"<p>(.*?)</p>", row["answer"]), row["mask"], strict=True):
                decoded = rle.decode(mask).astype(bool)
                (number,) = np.unique(instances[decoded])
                assert (decoded == ((parts == {"roof": 1, "chimney": 2}[noun]) & (instances == number))).all()
                checked += 1
    assert checked > 5


def test_every_cell_is_reached_over_a_set_of_pictures(tmp_path):
    folder = write_folder(tmp_path / "labels", 24, parts=True)
    more = ("--instances", str(folder / "instances"), "--parts", str(folder / "parts"), "--test-share", "0.5", "--records", "30")
    assert main(arguments(folder, tmp_path / "set", *more)) == 0
    rows = json.loads((tmp_path / "set" / "compose.json").read_text())["rows"]
    cells = {
        f"{c.granularity} {'multi' if c.multiple else 'single'} {'implicit' if c.implicit else 'explicit'} {'long' if c.long else 'short'}"
        for c in CELLS
    }
    assert cells <= rows["train"].keys() | rows["test"].keys()
    assert rows["train"]["empty"]
    assert rows["test"]["empty"]


def test_the_summary_says_what_was_done(composed, folder):
    summary = json.loads((composed / "compose.json").read_text())
    assert summary["licence"] == "CC0-1.0"
    assert summary["sources"]["labels"] == str(folder / "labels")
    assert summary["settings"] == {"records": 20, "test_share": 0.3, "seed": 0}
    assert summary["pictures"] == {"train": 4, "test": 2}
    for split in ("train", "test"):
        assert sum(summary["rows"][split].values()) == len(rows_of(composed, split))
    assert summary["partly_labelled"] == summary["without_rows"] == []


def test_the_files_depend_on_the_seed_and_not_on_the_number_of_processes(folder, tmp_path):
    for name, more in {"one": (), "again": ("--workers", "2"), "other": ("--seed", "1")}.items():
        assert main(arguments(folder, tmp_path / name, "--instances", str(folder / "instances"), *more)) == 2
    table = json.loads((folder / "classes.json").read_text())
    del table["parts"]
    (tmp_path / "classes.json").write_text(json.dumps(table))
    for name, more in {"one": (), "again": ("--workers", "2"), "other": ("--seed", "1")}.items():
        assert main([*arguments(folder, tmp_path / name, *more), "--classes", str(tmp_path / "classes.json")]) == 0
    assert _files(tmp_path / "one") == _files(tmp_path / "again")
    assert _files(tmp_path / "one") != _files(tmp_path / "other")


def test_colours_and_numbers_give_the_same_rows(tmp_path):
    for name, colours in (("numbers", False), ("colours", True)):
        source = write_folder(tmp_path / name, 3, colours=colours)
        assert main(arguments(source, tmp_path / f"{name}_set")) == 0
    rows = [rows_of(tmp_path / f"{name}_set", "train") for name in ("numbers", "colours")]
    assert rows[0] == rows[1]
    assert rows[0]


def test_without_instances_touching_things_are_one_and_nothing_else_is_joined(folder, tmp_path):
    shutil.copytree(folder / "images", tmp_path / "images")
    shutil.copytree(folder / "labels", tmp_path / "labels")
    table = json.loads((folder / "classes.json").read_text())
    (tmp_path / "classes.json").write_text(json.dumps({key: table[key] for key in ("classes", "ignore")}))
    assert main(arguments(tmp_path, tmp_path / "set", "--records", "20")) == 0
    for row in rows_of(tmp_path / "set", "train"):
        classes = _label(tmp_path, "labels", row["image_name"])
        for mask in row["mask"]:
            decoded = rle.decode(mask).astype(bool)
            assert len(np.unique(classes[decoded])) == 1
            if row["tags"]["granularity"] == "instance":
                # No pixel of the class touches it from outside.
                grown = np.pad(decoded, 1)
                grown = np.any([np.roll(grown, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)[1:-1, 1:-1]
                assert not ((classes == classes[decoded][0]) & grown & ~decoded).any()


def test_copies_of_a_picture_stand_on_the_same_side():
    digests = {f"{index}.png": f"{index // 3:064x}" for index in range(60)}
    sides = split_by_image(digests, 0.3, seed=5)
    assert sum(side == "test" for side in sides.values()) == 18
    for index in range(0, 60, 3):
        assert len({sides[f"{index + copy}.png"] for copy in range(3)}) == 1
    assert split_by_image(digests, 0.3, seed=6) != sides
    assert set(split_by_image({"a": "1", "b": "2"}, 0.01, 0).values()) == {"train", "test"}
    assert set(split_by_image(digests, 0.0, 0).values()) == {"train"}
    assert set(split_by_image(digests, 1.0, 0).values()) == {"test"}


def test_partly_labelled_pictures_are_named_and_nothing_is_said_of_their_whole(folder, tmp_path):
    for name in ("images", "labels"):
        shutil.copytree(folder / name, tmp_path / name)
    table = json.loads((folder / "classes.json").read_text())
    (tmp_path / "classes.json").write_text(json.dumps({key: table[key] for key in ("classes", "ignore")}))
    for path in (tmp_path / "labels").iterdir():
        classes = np.array(Image.open(path))
        classes[:30, :40] = 0
        Image.fromarray(classes).save(path)
    assert main(arguments(tmp_path, tmp_path / "set", "--test-share", "0")) == 0
    summary = json.loads((tmp_path / "set" / "compose.json").read_text())
    assert len(summary["partly_labelled"]) == 6
    assert not (tmp_path / "set" / "test").exists()
    rows = rows_of(tmp_path / "set", "train")
    assert rows
    for row in rows:
        assert row["tags"]["granularity"] == "instance"
        assert row["mask"]
        assert not re.search(r"\b(all|largest|leftmost|rightmost|uppermost|lowest|nearest|each|no)\b", row["description"] + row["answer"])


def test_ignored_pixels_that_are_black_in_the_picture_hide_nothing(folder, tmp_path):
    for name in ("images", "labels"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "classes.json").write_text(
        json.dumps({k: v for k, v in json.loads((folder / "classes.json").read_text()).items() if k != "parts"})
    )
    for path in (tmp_path / "images").iterdir():
        picture = np.array(Image.open(path))
        picture[:30, :40] = 0
        path.unlink()
        Image.fromarray(picture).save(path.with_suffix(".png"))
        label = next((tmp_path / "labels").glob(f"{path.stem}.*"))
        classes = np.array(Image.open(label))
        classes[:30, :40] = 0
        Image.fromarray(classes).save(label)
    assert main(arguments(tmp_path, tmp_path / "set")) == 0
    assert json.loads((tmp_path / "set" / "compose.json").read_text())["partly_labelled"] == []


@pytest.mark.parametrize("name", ["loveda", "potsdam", "vaihingen"])
def test_public_labels_give_true_rows(name, data_dir, tmp_path):
    source = data_dir / "mmseg_tests" / name
    files = ["--images", source / "img_dir", "--labels", source / "ann_dir", "--classes", name, "--output", tmp_path / "set"]
    assert main([*map(str, files), "--workers", "0", "--records", "24", "--test-share", "0"]) == 0
    value = {"loveda": {"building": 2, "road": 3, "water": 4, "barren land": 5, "woodland": 6, "farmland": 7}}.get(
        name, {"paved ground": 1, "building": 2, "low vegetation": 3, "tree": 4, "car": 5}
    )
    rows = rows_of(tmp_path / "set", "train")
    assert len(rows) >= 20
    for row in rows:
        classes = np.asarray(Image.open(source / "ann_dir" / row["image_name"]))
        categories = row["tags"]["category"].split(", ")
        for number, mask in enumerate(row["mask"]):
            decoded = rle.decode(mask).astype(bool)
            category = categories[number] if len(categories) == len(row["mask"]) else categories[0]
            if row["tags"]["granularity"] == "semantic":
                assert (decoded == (classes == value[category])).all()
            else:
                assert set(np.unique(classes[decoded])) == {value[category]}
        if not row["mask"]:
            assert not (classes == value[row["tags"]["category"]]).any()


def _label(folder: Path, kind: str, image_name: str) -> np.ndarray:
    return np.asarray(Image.open(next((folder / kind).glob(f"{image_name.rsplit('.', 1)[0]}.*"))))


def test_public_footprints_give_true_rows(data_dir, tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio (extra geo)")
    source = data_dir / "solaris_spacenet"
    (tmp_path / "images").mkdir()
    shutil.copy(source / "sample_geotiff.tif", tmp_path / "images")
    with rasterio.open(source / "sample_geotiff.tif") as dataset:
        inverse, size = np.array(~dataset.transform).reshape(3, 3), {"height": dataset.height, "width": dataset.width}
    annotations = []
    for feature in json.loads((source / "geotiff_labels.geojson").read_text())["features"]:
        geometry = feature["geometry"]
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        rings = [(np.array(polygon[0])[:, :2] @ inverse[:2, :2].T + inverse[:2, 2]).ravel().tolist() for polygon in polygons]
        annotations.append({"image_id": 1, "category_id": 1, "segmentation": rings})
    coco = {"images": [{"id": 1, "file_name": "sample_geotiff.tif", **size}], "categories": [{"id": 1, "name": "building"}]}
    (tmp_path / "coco.json").write_text(json.dumps({**coco, "annotations": annotations}))
    files = ["--images", tmp_path / "images", "--coco", tmp_path / "coco.json", "--output", tmp_path / "set"]
    assert main([*map(str, files), "--workers", "0", "--test-share", "0"]) == 0
    rows = rows_of(tmp_path / "set", "train")
    # 43 houses of one size, a few of them near every place: only all of them can be meant.
    assert len(rows) >= 3
    for row in rows:
        assert row["tags"]["granularity"] == "semantic"
        (mask,) = row["mask"]
        assert components(rle.decode(mask).astype(bool))[1] in range(38, 44)
