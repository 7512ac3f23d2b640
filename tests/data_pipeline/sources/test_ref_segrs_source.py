"""RefSegRS: lines of an image's number and a phrase, images and masks as TIFF."""

from __future__ import annotations

import numpy as np
import pytest
from source_example import HEIGHT, WIDTH, annotations, blob, loaded, mask_picture, picture, reasons

from data_pipeline.schema import Tags
from data_pipeline.sources.ref_segrs import SOURCE
from segearth_r2_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        picture(tmp_path / f"images/{number}.tif")
        # Published masks mark with 255; other numbers count as well.
        mask_picture(tmp_path / f"masks/{number}.tif", blob(number), 255 if number % 2 else 1)
    (tmp_path / "output_phrase_train.txt").write_text("0 vehicle in the parking area\n2   light-duty  vehicle\n\n2 the truck\n")
    (tmp_path / "output_phrase_val.txt").write_text("1 road\r\n")
    (tmp_path / "output_phrase_test.txt").write_text("3 building along the road")
    return tmp_path


def test_lines_become_records(folder):
    assert SOURCE.present(folder) == ("train", "val", "test")
    expected = {
        "train": [("0", "vehicle in the parking area", 0), ("2", "light-duty  vehicle", 2), ("2/1", "the truck", 2)],
        "val": [("1", "road", 1)],
        "test": [("3", "building along the road", 3)],
    }
    for split, rows in expected.items():
        found = annotations(SOURCE, folder, split)
        assert [(row.record_id, row.instruction) for row in found] == [row[:2] for row in rows]
        for annotation, (_, _, number) in zip(found, rows, strict=True):
            record, masks = loaded(annotation)
            assert record.image_bytes == (folder / f"images/{number}.tif").read_bytes()
            assert (record.image_name, record.source) == (f"{number}.tif", f"output_phrase_{split}.txt")
            assert (record.answer, record.tags) == ("Sure, it is [SEG].", Tags(multiplicity="single", reasoning="explicit"))
            np.testing.assert_array_equal(masks, [blob(number)])


def test_splits_that_are_not_there(folder):
    (folder / "output_phrase_val.txt").unlink()
    assert SOURCE.present(folder) == ("train", "test")
    with pytest.raises(UserError, match=r"output_phrase_val\.txt: cannot be read"):
        annotations(SOURCE, folder, "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"17", "expected an image's name, a space and a phrase, it is '17'"),
        (b"17 \t ", "expected an image's name, a space and a phrase, it is '17'"),
        (b"17 the truck", "image images/17.tif does not exist"),
        (b"../masks/1 the truck", "image_name '../masks/1.tif' leaves the folder images"),
        (b"/etc/hostname the truck", "image_name '/etc/hostname.tif' leaves the folder images"),
        (b"a\0b the truck", "image_name 'a\\x00b.tif' leaves the folder images"),
        (b"1 the \xff truck", "is not UTF-8 text"),
        (b"1 \xed\xa0\x80", "is not UTF-8 text"),  # a lone surrogate
        (b"x" * 5000 + b" the truck", "does not exist"),
    ],
)
def test_a_wrong_line_is_named(folder, line, message):
    (folder / "output_phrase_train.txt").write_bytes(b"0 vehicle\n" + line + b"\n2 truck\n")
    (reason,) = reasons(SOURCE, folder, "train")
    assert reason.startswith("output_phrase_train.txt: line 2: ")
    assert message in reason.replace(f"{folder}/", "")
    assert [row.record_id for row in SOURCE.read(folder, "train") if hasattr(row, "record_id")] == ["0", "2"]


def test_damage_of_images_and_masks(folder):
    (folder / "masks/0.tif").unlink()
    (reason,) = reasons(SOURCE, folder, "train")
    assert reason == "output_phrase_train.txt: line 1: mask masks/0.tif does not exist"
    mask_picture(folder / "masks/0.tif", blob(0, WIDTH, HEIGHT))
    with pytest.raises(UserError, match=r"train\.txt: line 1: mask 0: .*0\.tif is 40 x 30, its image 30 x 40 \(height x width\)"):
        annotations(SOURCE, folder, "train")[0].load()
    (folder / "masks/0.tif").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train\.txt: line 1: mask 0: .*0\.tif: is not a readable picture"):
        annotations(SOURCE, folder, "train")[0].load()
    picture(folder / "masks/0.tif")
    with pytest.raises(UserError, match=r"train\.txt: line 1: mask 0: .*0\.tif: has 3 different bands"):
        annotations(SOURCE, folder, "train")[0].load()
    (folder / "images/0.tif").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train\.txt: line 1: image .*0\.tif: is not an image"):
        annotations(SOURCE, folder, "train")[0].load()
    (folder / "images/0.tif").unlink()
    assert reasons(SOURCE, folder, "train") == ["output_phrase_train.txt: line 1: image images/0.tif does not exist"]


def test_a_wrong_folder_is_named(folder):
    (folder / "output_phrase_train.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"output_phrase_train\.txt: holds no line"):
        annotations(SOURCE, folder, "train")
    with pytest.raises(UserError, match=r"images: holds no output_phrase_train\.txt"):
        SOURCE.present(folder / "images")
    (folder / "masks").rename(folder / "mask")
    with pytest.raises(UserError, match=r"masks: no such folder; expected images/ and masks/ beside output_phrase_"):
        SOURCE.present(folder)
