"""EarthReason: an image, a label and a file of questions each; empty answers say that there is no target; labelme's shapes as labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from source_example import HEIGHT, WIDTH, annotations, blob, loaded, mask_picture, picture, reasons

from data_pipeline.schema import Tags
from data_pipeline.sources.earth_reason import SOURCE
from segearth_r2_jax.errors import UserError

QUESTIONS = ["Where can ships be mended?", " Which place keeps water out? ", "Where would you land?"]
ANSWERS = ["The dock in the north.", "It is the dock."]


def write(folder, name="a", split="train", **content):
    """Writes a file of questions; a field that is None is left out."""
    content = {"questions": QUESTIONS, "answer": ANSWERS, **content}
    file = folder / split / "QAs" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return file


@pytest.fixture
def folder(tmp_path):
    """Two images in train, the second without a target; one in test."""
    for split, name, suffix, seed in (("train", "a", "jpg", 0), ("train", "b", "png", 1), ("test", "c", "JPG", 2)):
        picture(tmp_path / split / "images" / f"{name}.jpg").rename(tmp_path / split / "images" / f"{name}.{suffix}")
        mask_picture(tmp_path / split / "labels" / f"{name}.png", blob(seed) * np.uint8(name != "b"))
        write(tmp_path, name, split, **({"answer": []} if name == "b" else {}))
    return tmp_path


def test_questions_become_records(folder):
    assert SOURCE.present(folder) == ("train", "test")
    rows = annotations(SOURCE, folder, "train")
    assert [row.record_id for row in rows] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
    for number, row in enumerate(rows[:3]):
        record, masks = loaded(row)
        assert record.instruction == QUESTIONS[number].strip()
        assert record.answer == f"Sure, it is [SEG]. {ANSWERS[number % 2]}"
        assert (record.image_name, record.source) == ("train/images/a.jpg", "train/QAs/a.json")
        assert record.tags == Tags(reasoning="implicit")
        np.testing.assert_array_equal(masks, [blob(0)])
    for row in rows[3:]:
        record, masks = loaded(row)
        assert (record.answer, masks) == ("There is no target object in the image.", [])
    np.testing.assert_array_equal(loaded(annotations(SOURCE, folder, "test")[0])[1], [blob(2)])


def test_an_archive_unpacked_within_a_folder_of_its_name(folder):
    (folder / "test").rename(folder / "inner")
    (folder / "test").mkdir()
    (folder / "inner").rename(folder / "test/test")
    (folder / "test/test/labels").rename(folder / "test/labels")
    (row, *_) = annotations(SOURCE, folder, "test")
    assert row.source == "test/test/QAs/c.json"
    np.testing.assert_array_equal(loaded(row)[1], [blob(2)])


SQUARE = [[3.2, 4.7], [9, 4], [9, 11], [3, 11]]


@pytest.mark.parametrize(
    "shapes",
    [
        [{"label": "target", "points": SQUARE, "shape_type": "polygon"}],
        [{"label": "dock", "points": SQUARE}, {"label": "dock", "points": [[5, 5], [6, 5], [6, 6]]}],
        [{"label": "target", "points": [[3, 4], [9, 11]], "shape_type": "rectangle"}],
    ],
)
def test_labelme_shapes_stand_in_for_the_label(folder, shapes):
    write(folder, shapes=shapes, imageHeight=HEIGHT, imageWidth=WIDTH, version="5.0.1", flags={}, imageData=None)
    (folder / "train/labels/a.png").unlink()
    expected = np.zeros((HEIGHT, WIDTH))
    expected[4:12, 3:10] = 1  # with its outline
    np.testing.assert_array_equal(loaded(annotations(SOURCE, folder, "train")[0])[1], [expected])


def test_labelme_without_shapes_has_no_target(folder):
    write(folder, shapes=[], answer=[])
    assert loaded(annotations(SOURCE, folder, "train")[0])[1] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"questions": None}, "questions must be a list, it is missing"),
        ({"questions": "Where?"}, "questions must be a list, it is str"),
        ({"questions": []}, "has no questions"),
        ({"questions": ["Where?", 3]}, "questions 1 must be a text, it is int"),
        ({"questions": ["\ud800"]}, "questions 0 holds characters that are no text (lone surrogates)"),
        ({"questions": [" "]}, "question 0: is empty"),
        ({"answer": None}, "answer must be a list, it is missing"),
        ({"answer": "There."}, "answer must be a list, it is str"),
        ({"answer": [None]}, "answer 0 must be a text, it is NoneType"),
        ({"answer": []}, "its answer is empty, which says that there is no target, but train/labels/a.png marks one"),
        ({"questions": ["Where?"], "answer": ["There [SEG]."]}, "question 0: the answer has 2 [SEG], but there are 1 masks"),
        ({"shapes": []}, "has 0 shapes, but its answer names a target"),
        ({"shapes": [{"points": SQUARE}], "answer": []}, "has 1 shapes, but its answer is empty"),
        ({"shapes": {}}, "shapes must be a list, it is dict"),
        ({"shapes": ["x"]}, "shape 0: expected an object of label and points, it is str"),
        ({"shapes": [{"label": "target"}]}, "shape 0: points must be a list, it is missing"),
        ({"shapes": [{"points": SQUARE, "shape_type": "circle"}]}, "shape 0: shape_type must be polygon or rectangle, it is 'circle'"),
        ({"shapes": [{"points": SQUARE, "label": "ignore"}]}, "shape 0: is labelled 'ignore'"),
        ({"shapes": [{"points": SQUARE}], "imageHeight": "30"}, "imageHeight and imageWidth must be positive whole numbers"),
    ],
)
def test_a_wrong_file_of_questions_is_named(folder, content, message):
    write(folder, **content)
    (reason,) = reasons(SOURCE, folder, "train")
    assert reason.startswith(f"train/QAs/a.json: {message}")
    assert [row.record_id for row in SOURCE.read(folder, "train") if hasattr(row, "record_id")] == ["b/0", "b/1", "b/2"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"questions": [', "\xff", "[" * 100000])
def test_a_damaged_file_of_questions_is_named(folder, text):
    (folder / "train/QAs/a.json").write_bytes(text.encode("latin-1"))
    (reason,) = reasons(SOURCE, folder, "train")
    assert reason.startswith("train/QAs/a.json: ")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([{"points": [[1, 1], [2, 2]]}], "a polygon has at least three points, this one has 2"),
        ([{"points": [[1, 1], [2, float("nan")], [3, 3]]}], r"a polygon is a list of points \(x, y\)"),
        ([{"points": [[1, 1], [2, 10**400], [3, 3]]}], r"a polygon is a list of points \(x, y\)"),
        ([{"points": [1, 2, 3]}], r"a polygon is a list of points \(x, y\)"),
        ([{"points": [[50, 50], [60, 50], [60, 60]]}], "outside of its image"),
        ([{"points": SQUARE}], r"was drawn on 31 x 40 pixels, its image has 30 x 40 \(height x width\)"),
    ],
)
def test_shapes_that_do_not_fit(folder, shapes, message):
    write(folder, shapes=shapes, **({"imageHeight": 31, "imageWidth": 40} if "31" in message else {}))
    with pytest.raises(UserError, match=rf"train/QAs/a\.json: question 0: mask 0.*{message}"):
        annotations(SOURCE, folder, "train")[0].load()


def test_images_labels_and_questions_belong_together(folder):
    picture(folder / "train/images/lonely.png")
    write(folder, "orphan")
    picture(folder / "train/images/a.png")
    assert reasons(SOURCE, folder, "train") == [
        "train/QAs/a.json: expected one image and one file of questions called a, found QAs/a.json, images/a.jpg, images/a.png",
        "train/images/lonely.png: expected one image and one file of questions called lonely, found images/lonely.png",
        "train/QAs/orphan.json: expected one image and one file of questions called orphan, found QAs/orphan.json",
    ]
    (folder / "test/labels/c.png").unlink()
    assert reasons(SOURCE, folder, "test") == ["test/QAs/c.json: label test/labels/c.png does not exist"]


def test_links_may_not_leave_the_folder(folder):
    outside = folder.parent / "outside"
    outside.mkdir()
    for part, name in (("images", "c.JPG"), ("labels", "c.png"), ("QAs", "c.json")):
        file = folder / "test" / part / name
        target = file.rename(outside / name)
        file.symlink_to(target)
        (reason,) = reasons(SOURCE, folder, "test")
        assert "leaves the folder" in reason
        file.unlink()
        target.rename(file)
    assert not reasons(SOURCE, folder, "test")


def test_what_only_the_image_tells_is_said_with_it(folder):
    mask_picture(folder / "train/labels/a.png", blob(0, WIDTH, HEIGHT))
    with pytest.raises(UserError, match=r"QAs/a\.json: question 0: mask 0: .*a\.png is 40 x 30, its image 30 x 40"):
        annotations(SOURCE, folder, "train")[0].load()
    (folder / "train/images/a.jpg").write_bytes((folder / "train/images/a.jpg").read_bytes()[:-60])
    with pytest.raises(UserError, match=r"QAs/a\.json: question 0: image .*a\.jpg: is damaged or cut short"):
        annotations(SOURCE, folder, "train")[0].load()
    (folder / "train/labels/b.png").write_bytes(b"no picture")
    assert "labels/b.png: is not a readable picture" in reasons(SOURCE, folder, "train")[0]


def test_a_wrong_folder_is_named(folder):
    with pytest.raises(UserError, match=r"val/QAs: no such folder"):
        annotations(SOURCE, folder, "val")
    with pytest.raises(UserError, match=r"holds none of train/QAs, val/QAs, test/QAs"):
        SOURCE.present(folder / "train")
    (folder / "test/images").rename(folder / "test/image")
    with pytest.raises(UserError, match=r"test/images: no such folder"):
        annotations(SOURCE, folder, "test")
