"""RISBench: lines of an image's file name and a phrase, images in img_rgb, masks in mask. (Damage: test_ref_segrs_source.py.)"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from source_example import annotations, blob, loaded, mask_picture, picture, reasons

from data_pipeline.schema import Tags
from data_pipeline.sources.risbench import SOURCE


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("train_0_0.png", "train_7_2.png", "test_0_3.png")):
        picture(tmp_path / "img_rgb" / name)
        mask_picture(tmp_path / "mask" / name, blob(number))
    (tmp_path / "output_phrase_train.txt").write_text("train_0_0.png The large ship in the middle\n")
    # The images of the validation split are called train, too.
    (tmp_path / "output_phrase_val.txt").write_text("train_7_2.png The small vehicle\n")
    (tmp_path / "output_phrase_test.txt").write_text("test_0_3.png The bridge\n")
    return tmp_path


def test_lines_become_records(folder):
    rows = [
        ("train", "train_0_0", "The large ship in the middle"),
        ("val", "train_7_2", "The small vehicle"),
        ("test", "test_0_3", "The bridge"),
    ]
    assert SOURCE.present(folder) == ("train", "val", "test")
    for number, (split, record_id, phrase) in enumerate(rows):
        (annotation,) = annotations(SOURCE, folder, split)
        record, masks = loaded(annotation)
        assert (record.record_id, record.instruction, record.answer) == (record_id, phrase, "Sure, it is [SEG].")
        assert (record.image_name, record.source) == (f"{record_id}.png", f"output_phrase_{split}.txt")
        assert record.tags == Tags(multiplicity="single", reasoning="explicit")
        np.testing.assert_array_equal(masks, [blob(number)])


def test_a_grey_mask_saved_as_colour(folder):
    Image.fromarray(blob(5) * np.uint8(255)).convert("RGB").save(folder / "mask/test_0_3.png")
    np.testing.assert_array_equal(loaded(annotations(SOURCE, folder, "test")[0])[1], [blob(5)])


def test_a_wrong_line_is_named(folder):
    with (folder / "output_phrase_test.txt").open("a") as file:
        file.write("test_9_9.png The dam\n../img_rgb/test_0_3.png The dam\nThe\n")
    assert [reason.partition(": line ")[2] for reason in reasons(SOURCE, folder, "test")] == [
        "2: image img_rgb/test_9_9.png does not exist",
        "3: image_name '../img_rgb/test_0_3.png' leaves the folder mask",
        "4: expected an image's name, a space and a phrase, it is 'The'",
    ]
