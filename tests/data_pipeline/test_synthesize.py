"""`python -m data_pipeline.synthesize`: the LaSeRS layout, whole or not at all, the same bytes for any number of processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import synthesize
from data_pipeline.synthesize import WorldSettings
from data_pipeline.synthetic.scene import draw_scene
from segearth_r2_jax.raster import rle

SETTINGS = WorldSettings(train=6, test=26, size=96, seed=2)
NINE_FILES = {
    "test_short_query",
    "test_long_query",
    "test_explicit",
    "test_implicit",
    "test_single_cate",
    "test_multi_cate",
    "test_instance_level",
    "test_part_level",
    "test_sematic_level",
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "world"
    assert synthesize.synthesize(SETTINGS, folder, workers=0)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_layout_is_that_of_lasers(drawn):
    assert {path.stem for path in (drawn / "test" / "annotations").iterdir()} == {*NINE_FILES, "test_empty"}
    assert [path.name for path in (drawn / "train" / "annotations").iterdir()] == ["train_data.json"]
    assert len(list((drawn / "train" / "images").iterdir())) == SETTINGS.train
    assert len(list((drawn / "test" / "images").iterdir())) == SETTINGS.test


def test_records_are_complete_and_their_masks_fit_their_images(drawn):
    for path in (*(drawn / "train" / "annotations").iterdir(), *(drawn / "test" / "annotations").iterdir()):
        images = path.parent.parent / "images"
        records = _read(path)
        assert records, path.name
        for record in records:
            assert record.keys() == {"id", "image_name", "description", "answer", "mask", "tags"}
            with Image.open(images / record["image_name"]) as image:
                assert image.mode == "RGB"
                size = image.size[::-1]
            assert record["answer"].count("[SEG]") == len(record["mask"])
            for mask in record["mask"]:
                assert tuple(mask["size"]) == size
                assert 0 < rle.decode(mask).sum() < size[0] * size[1]


def test_each_test_record_stands_in_one_file_per_dimension(drawn):
    files = {path.stem: {r["id"] for r in _read(path)} for path in (drawn / "test" / "annotations").iterdir() if path.stem != "test_empty"}
    everything = set.union(*files.values())
    assert len(everything) == pytest.approx(SETTINGS.test * SETTINGS.records, abs=5)
    for dimension in (
        ("test_short_query", "test_long_query"),
        ("test_explicit", "test_implicit"),
        ("test_single_cate", "test_multi_cate"),
        ("test_instance_level", "test_part_level", "test_sematic_level"),
    ):
        assert sum(len(files[name]) for name in dimension) == len(everything)
        assert set.union(*(files[name] for name in dimension)) == everything


def test_ids_are_unique(drawn):
    ids = [record["id"] for record in _read(drawn / "train" / "annotations" / "train_data.json")]
    assert len(set(ids)) == len(ids)


def test_the_tenth_test_file_asks_for_what_is_not_there(drawn):
    records = _read(drawn / "test" / "annotations" / "test_empty.json")
    assert 0.8 * SETTINGS.test <= len(records) <= SETTINGS.test
    for record in records:
        assert record["mask"] == []
        assert "[SEG]" not in record["answer"]


def test_the_simple_world_has_the_nine_files_and_its_own_pictures(drawn, tmp_path):
    settings = dataclasses.replace(SETTINGS, train=1, test=1, world="simple")
    synthesize.synthesize(settings, tmp_path / "simple", workers=0)
    assert {path.stem for path in (tmp_path / "simple" / "test" / "annotations").iterdir()} == NINE_FILES
    for split in range(2):
        name = ("train", "test")[split]
        picture = np.asarray(Image.open(tmp_path / "simple" / name / "images" / f"{name}_000000.png"))
        np.testing.assert_array_equal(picture, draw_scene((SETTINGS.seed, split, 0), SETTINGS.size, world="simple").image)


def test_test_scenes_of_the_full_world_are_held_out_layouts(drawn):
    for split, held_out in enumerate((False, True)):
        name = ("train", "test")[split]
        picture = np.asarray(Image.open(drawn / name / "images" / f"{name}_000001.png"))
        expected, other = (draw_scene((SETTINGS.seed, split, 1), SETTINGS.size, held_out=held).image for held in (held_out, not held_out))
        np.testing.assert_array_equal(picture, expected)
        assert (picture != other).any()


def test_jpeg_pictures_are_smaller_and_show_the_same(drawn, tmp_path):
    settings = dataclasses.replace(SETTINGS, train=2, test=0, format="jpg", jpeg_quality=90)
    synthesize.synthesize(settings, tmp_path / "jpg", workers=0)
    records = _read(tmp_path / "jpg" / "train" / "annotations" / "train_data.json")
    png = {record["id"]: record for record in _read(drawn / "train" / "annotations" / "train_data.json")}
    for record in records:
        assert record["image_name"].endswith(".jpg")
        assert record == {**png[record["id"]], "image_name": record["image_name"]}
    for index in range(2):
        stored = tmp_path / "jpg" / "train" / "images" / f"train_{index:06d}.jpg"
        original = drawn / "train" / "images" / f"train_{index:06d}.png"
        assert stored.stat().st_size < 0.6 * original.stat().st_size
        assert np.abs(np.asarray(Image.open(stored), int) - np.asarray(Image.open(original), int)).mean() < 12


def test_workers_for_large_pictures_are_limited_by_the_memory(monkeypatch):
    monkeypatch.setattr(synthesize.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 * 2**30 // 4096}.__getitem__)
    assert synthesize._fitting_processes(8192) == 2
    assert synthesize._fitting_processes(256) > 64


def test_the_summary_counts_the_records(drawn):
    summary = json.loads((drawn / "synthetic.json").read_text())
    for name in (*NINE_FILES, "test_empty"):
        assert summary["records"][f"test {name.removeprefix('test_')}"] == len(_read(drawn / "test" / "annotations" / f"{name}.json"))


def test_the_files_do_not_depend_on_the_number_of_processes(drawn, tmp_path):
    synthesize.synthesize(SETTINGS, tmp_path / "two", workers=2)
    assert _files(tmp_path / "two") == _files(drawn)


def test_a_longer_set_begins_with_the_shorter_one(drawn, tmp_path):
    synthesize.synthesize(WorldSettings(train=2, test=3, size=96, seed=2), tmp_path / "short", workers=0)
    for split, count in (("train", 2), ("test", 3)):
        for index in range(count):
            name = f"{split}/images/{split}_{index:06d}.png"
            assert (tmp_path / "short" / name).read_bytes() == (drawn / name).read_bytes()


def test_train_test_and_other_seeds_show_different_scenes(drawn, tmp_path):
    synthesize.synthesize(WorldSettings(train=1, test=0, size=96, seed=3), tmp_path / "other", workers=0)
    pictures = [
        drawn / "train/images/train_000000.png",
        drawn / "test/images/test_000000.png",
        tmp_path / "other/train/images/train_000000.png",
    ]
    assert len({np.asarray(Image.open(path)).tobytes() for path in pictures}) == 3


def test_a_complete_set_is_left_alone(drawn, capsys):
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    arguments = ["--train", "6", "--test", "26", "--size", "96", "--seed", "2", "--output", str(drawn)]
    assert synthesize.main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before


def test_another_set_in_the_folder_is_refused(drawn, capsys):
    assert synthesize.main(["--train", "7", "--test", "26", "--size", "96", "--seed", "2", "--output", str(drawn)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert str(drawn) in captured.err
    assert "empty folder" in captured.err


def test_an_empty_folder_is_used_and_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    small = ["--train", "1", "--test", "0", "--size", "64"]
    assert synthesize.main([*small, "--output", str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "train" / "images" / "train_000000.png").is_file()
    assert synthesize.main([*small, "--output", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesize, "_write_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthesize.synthesize(SETTINGS, tmp_path / "world", workers=0)
    assert synthesize.main(["--train", "1", "--output", str(tmp_path / "world")]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "10"],
        ["--train", "-1"],
        ["--train", "0", "--test", "0"],
        ["--records", "0"],
        ["--workers", "-1"],
        ["--metres-per-pixel", "0"],
        ["--metres-per-pixel", "9", "--size", "512"],
        ["--size", "8193"],
        ["--world", "flat"],
        ["--format", "gif"],
        ["--jpeg-quality", "0"],
    ],
)
def test_wrong_arguments_get_one_line_that_says_what_is_expected(arguments, tmp_path, capsys):
    assert synthesize.main([*arguments, "--output", str(tmp_path / "world")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert arguments[0] in error
    assert "expected" in error
    assert list(tmp_path.iterdir()) == []


def test_drawing_needs_numpy_and_pillow_only():
    program = "import data_pipeline.synthesize, sys; print(*{'jax', 'transformers', 'tokenizers', 'scipy', 'torch'} & set(sys.modules))"
    root = Path(synthesize.__file__).parent.parent
    loaded = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


def test_a_log_gets_plain_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(synthesize, "_LOG_SECONDS", -1)
    synthesize.synthesize(WorldSettings(train=2, test=0, size=64, seed=0), tmp_path / "world", workers=0)
    assert capsys.readouterr().err.splitlines() == ["drawing: 1 of 2 scenes", "drawing: 2 of 2 scenes"]
