"""LRS-GRO: questions with answers and boxes; the cut of rl.jsonl, images of the test split and repeated rows are kept out."""

from __future__ import annotations

import json

import pytest
from source_example import annotations, loaded, picture, reasons

from data_pipeline.schema import Tags
from data_pipeline.sources import lrs_gro
from data_pipeline.sources.lrs_gro import SOURCE
from segearth_r2_jax.errors import UserError


def row(number: int, **changes) -> dict:
    content = {
        "question_id": f"LRS-GRO-{number}",
        "image_name": "a.png",
        "category": "Object color / pattern",
        "type": "object",
        "question": f"What color is ship {number}?",
        "ground_truth": "light grey",
        "bbox": [128, 0, 512, 384],
        "split": "RL",
    }
    return {key: value for key, value in {**content, **changes}.items() if value is not ...}


ROWS = [
    row(1, split="sft", image_name="s.png", scale=4.156, stage_1_reasoning="I think"),
    row(2, split="SFT", image_name="s.png", type="global", category="Scene Type", bbox=[], cut=False),
    row(3),
    row(4, split="rl", type="region", category="Counting"),
    row(5, split="Test", image_name="t.tif", type="global", category="Function", bbox=[]),
    row(6, split="test", image_name="t.tif"),
]


def write(folder, rows, file="LRS-GRO.jsonl"):
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "s.png", "t.tif"):
        picture(tmp_path / "images" / name, 125, 256)
    write(tmp_path, ROWS)
    return tmp_path


def test_rows_become_records(folder):
    assert SOURCE.present(folder) == ("sft", "rl", "test")
    rows = {split: annotations(SOURCE, folder, split) for split in SOURCE.splits}
    assert {split: [row.record_id for row in found] for split, found in rows.items()} == {
        "sft": ["LRS-GRO/LRS-GRO-1", "LRS-GRO/LRS-GRO-2"],
        "rl": ["LRS-GRO/LRS-GRO-3", "LRS-GRO/LRS-GRO-4"],
        "test": ["LRS-GRO/LRS-GRO-5", "LRS-GRO/LRS-GRO-6"],
    }
    record, masks = loaded(rows["rl"][0])
    assert (record.instruction, record.answer, masks) == ("What color is ship 3?", "light grey", [])
    # The image is 256 wide, a quarter of the frame of the boxes.
    assert record.box == (32, 0, 128, 96)
    assert record.tags == Tags(category="object/Object color / pattern")
    record, _ = loaded(rows["test"][0])
    assert (record.box, record.tags) == (None, Tags(category="global/other"))
    assert rows["rl"][1].tags == Tags(category="region/Counting")


def test_images_beside_the_file(folder):
    for image in (folder / "images").iterdir():
        image.rename(folder / image.name)
    (folder / "images").rmdir()
    assert len(annotations(SOURCE, folder, "test")) == 2


def test_rl_jsonl_ends_at_2500_rows(folder, monkeypatch):
    assert lrs_gro.RL_ROWS == 2500
    (folder / "LRS-GRO.jsonl").unlink()
    rows = [row(number, image_name="a.png") for number in range(2500)]
    rows[7]["image_name"] = "t.tif"
    write(folder, [*rows, row(2500, image_name="t.tif"), row(2501, image_name="elsewhere.png")], "rl.jsonl")
    assert SOURCE.present(folder) == ("rl",)
    found = [row for row in SOURCE.read(folder, "rl") if hasattr(row, "record_id")]
    assert len(found) == 2499
    assert found[-1].record_id == "rl/LRS-GRO-2499"
    assert reasons(SOURCE, folder, "rl") == ["rl.jsonl: line 8: image 't.tif' belongs to the test split; it must not be trained on"]
    with pytest.raises(UserError, match="holds no row of the split 'test'"):
        annotations(SOURCE, folder, "test")


def test_images_of_the_test_split_are_not_trained_on(folder):
    write(folder, [*ROWS, row(7, image_name="t.tif"), row(8, image_name="t.tif", split="sft")])
    message = "image 't.tif' belongs to the test split; it must not be trained on"
    assert reasons(SOURCE, folder, "rl") == [f"LRS-GRO.jsonl: line 7: {message}"]
    assert reasons(SOURCE, folder, "sft") == [f"LRS-GRO.jsonl: line 8: {message}"]
    assert not reasons(SOURCE, folder, "test")


def test_a_question_is_known_by_image_words_and_box_not_by_its_id(folder):
    again = row(9, question="What color is ship 3? ")
    write(folder, [*ROWS, again, row(3, question="Is it large?"), row(10, question="What color is ship 3?", bbox=[1, 2, 3, 4])])
    assert reasons(SOURCE, folder, "rl") == ["LRS-GRO.jsonl: line 7: repeats image, question and box of line 3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_id": ...}, "question_id must be a text, it is missing"),
        ({"question_id": 3}, "question_id must be a text, it is int"),
        ({"image_name": ...}, "image_name must be a text, it is missing"),
        ({"image_name": ""}, "image_name is empty"),
        ({"image_name": ["t.tif"]}, "image_name must be a text, it is list"),
        ({"image_name": "b.png"}, "image images/b.png does not exist"),
        ({"image_name": "../LRS-GRO.jsonl"}, "image_name '../LRS-GRO.jsonl' leaves the folder images"),
        ({"question": ...}, "question must be a text, it is missing"),
        ({"question": " "}, "question is empty"),
        ({"question": "\udfff"}, "question holds characters that are no text (lone surrogates)"),
        ({"ground_truth": ...}, "ground_truth must be a text, it is missing"),
        ({"ground_truth": 3}, "ground_truth must be a text, it is int"),
        ({"ground_truth": "[SEG]"}, "the answer has 1 [SEG], but there are 0 masks"),
        ({"type": "scene"}, "type must be one of global, region, object, it is 'scene'"),
        ({"type": ...}, "type must be a text, it is missing"),
        ({"category": ...}, "category must be a text, it is missing"),
        ({"bbox": ...}, "bbox must be [] or four numbers [x1, y1, x2, y2], it is None"),
        ({"bbox": [1, 2, 3]}, "bbox must be [] or four numbers [x1, y1, x2, y2], it is of type list"),
        ({"bbox": [1, 2, "3", 4]}, "bbox must be [] or four numbers"),
        ({"bbox": [1, 2, True, 4]}, "bbox must be [] or four numbers"),
        ({"bbox": [5, 2, 3, 4]}, "bbox [5, 2, 3, 4] is no box within 0..1024"),
        ({"bbox": [0, 0, 1025, 4]}, "bbox [0, 0, 1025, 4] is no box within 0..1024"),
        ({"bbox": [0, 0, float("nan"), 4]}, "bbox [0, 0, nan, 4] is no box within 0..1024"),
        ({"bbox": [0, 0, 10**400, 4]}, "bbox [0, 0, 1000000"),
    ],
)
def test_a_wrong_row_is_named(folder, changes, message):
    write(folder, [*ROWS, row(7, **changes)])
    (reason,) = reasons(SOURCE, folder, "rl")
    assert reason.startswith(f"LRS-GRO.jsonl: line 7: {message}")
    assert len(reason) < 300


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"split": "RL"', "not JSON ("),
        ("[1]", "expected an object of named fields, it is list"),
        (json.dumps(row(7, split="train")), "split must be one of sft, rl, test, it is 'train'"),
        (json.dumps(row(7, split=...)), "split must be one of sft, rl, test, it is None"),
        (json.dumps(row(7, split=["RL"])), "split must be one of sft, rl, test, it is of type list"),
    ],
)
def test_a_line_of_no_split_is_rejected_with_the_first(folder, line, message):
    with (folder / "LRS-GRO.jsonl").open("a") as file:
        file.write(line)
    (reason,) = reasons(SOURCE, folder, "sft")
    assert reason.startswith(f"LRS-GRO.jsonl: line 7: {message}")
    assert not reasons(SOURCE, folder, "rl")


def test_a_box_beyond_a_narrow_image(folder):
    """The frame of the boxes is square, an image's shorter side ends within it."""
    write(folder, [*ROWS, row(7, bbox=[0, 600, 100, 700])])
    with pytest.raises(UserError, match=r"line 7: the box \(0, 600, 100, 700\) does not lie in its image of 256 x 125 pixels"):
        annotations(SOURCE, folder, "rl")[-1].load()


def test_a_wrong_folder_is_named(folder):
    with pytest.raises(UserError, match=r"holds neither LRS-GRO\.jsonl nor rl\.jsonl"):
        SOURCE.present(folder / "images")
    write(folder, [])
    with pytest.raises(UserError, match=r"LRS-GRO\.jsonl: holds no row of a known split"):
        SOURCE.present(folder)


def test_the_published_rl_file(data_dir, tmp_path):
    """All of its first 2,500 rows are good but one, which repeats another; their images are not in the test split."""
    (tmp_path / "rl.jsonl").write_bytes((data_dir / "zoomearth_lrsgro/rl.jsonl").read_bytes())
    names = {json.loads(line)["image_name"] for line in (tmp_path / "rl.jsonl").read_text().splitlines()[:2500]}
    assert len(names) == 228
    for name in names:
        (tmp_path / name).touch()
    rows = list(SOURCE.read(tmp_path, "rl"))
    assert len(rows) == 2500
    (reason,) = reasons(SOURCE, tmp_path, "rl")
    assert "repeats image, question and box of line" in reason
    kinds = {row.tags.category for row in rows if hasattr(row, "tags")}
    assert len(kinds) == 18
    assert {kind for kind in kinds if kind.endswith("/other")} == {"global/other"}
    assert {(row.box is None) == row.tags.category.startswith("global/") for row in rows if hasattr(row, "tags")} == {True}
