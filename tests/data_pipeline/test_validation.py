"""Every row is checked before anything is written; what is wrong is left out and listed with its reason."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from lasers_example import SHAPES, row_masks

from data_pipeline.build_shards import build_shards, main, validate_only
from data_pipeline.shard_folder import ShardedRecords
from data_pipeline.sources import lasers
from data_pipeline.validation import CheckTask, check_rows
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster.rle import encode

TRAIN = "train/annotations/train_ann.json"


def run(folder, output, *options) -> int:
    return main(["--source", "lasers", "--input", str(folder), "--output", str(output), *options])


def change(folder, number, file=TRAIN, **content):
    """Sets fields of one row."""
    path = folder / file
    rows = json.loads(path.read_text())
    rows[number] |= content
    path.write_text(json.dumps(rows))


def rejections(folder, tmp_path, **options) -> list[tuple[str, str, str]]:
    report = validate_only("lasers", folder, tmp_path / "report", **options)
    assert json.loads((tmp_path / "report/report.json").read_text()) == report
    return [(entry["split"], entry["name"], entry["reason"]) for entry in report["rejected"]]


def test_a_data_set_without_fault(lasers_folder, tmp_path):
    report = validate_only("lasers", lasers_folder, tmp_path, command="a command")
    assert (report["rejected"], report["notes"]) == ([], [])
    assert (report["source"], report["licence"], report["command"]) == ("lasers", lasers.SOURCE.licence, "a command")
    train = report["splits"]["train"]
    assert {key: train[key] for key in ("annotations", "records", "rejected", "images", "masks", "empty_masks")} == {
        "annotations": 11,
        "records": 11,
        "rejected": 0,
        "images": 10,
        "masks": 15,
        "empty_masks": 0,
    }
    assert train["masks_per_record"] == {"0": 3, "1": 3, "2": 3, "3": 2}
    assert train["tags"]["language"] == {"not stated": 11}
    assert report["splits"]["test"]["tags"]["language"] == {"short": 3}
    assert train["instruction_words"] == {"7": 11}
    assert train["image_sizes"] == {f"{w}x{h}": 2 for h, w in SHAPES}
    areas = [int(mask.sum()) for number in range(11) for mask in row_masks(number)]
    pixels = train["target_pixels"]
    assert pixels["counts"] == np.histogram(areas, pixels["edges"])[0].tolist()
    shares = [float(mask.mean()) for number in range(11) for mask in row_masks(number)]
    assert train["target_share"]["counts"] == np.histogram(shares, train["target_share"]["edges"])[0].tolist()


def test_wrong_rows_are_left_out_and_listed(lasers_copy, tmp_path, capsys):
    change(lasers_copy, 1, mask=[encode(np.ones((40, 64)))])  # the image is 64 x 40
    change(lasers_copy, 2, description=" ")
    image = lasers_copy / "train/images/area/3.jpg"
    image.write_bytes(image.read_bytes()[:-300])
    change(lasers_copy, 9, id="row4")
    change(lasers_copy, 1, "test/annotations/test_short_query.json", image_name="../0.png")
    assert run(lasers_copy, tmp_path / "out") == 0
    assert "an earlier row of the file has the same id" in (tmp_path / "out/report.html").read_text()
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "train: 7 records, 8 masks, 6 images in 1 shards, 4 rejected"
    report = json.loads((tmp_path / "out/report.json").read_text())
    expected = [
        ("train", f"{TRAIN}: row 'row1'", "mask 0 is 40 x 64, its image 64 x 40 (height x width)"),
        ("train", f"{TRAIN}: row 'row2'", "description is empty"),
        ("train", f"{TRAIN}: row 'row3'", "image train/images/area/3.jpg: is not an image that can be read"),
        ("train", f"{TRAIN}: row 'row4'", "an earlier row of the file has the same id"),
        ("test", "test/annotations/test_short_query.json: row 'row1'", "image_name '../0.png' leaves the folder test/images"),
    ]
    for entry, (split, name, reason) in zip(report["rejected"], expected, strict=True):
        assert (entry["split"], entry["name"]) == (split, name)
        assert entry["reason"].startswith(reason)
        assert f"rejected: {name}: {reason}" in captured.err
    assert f"rejected 5 rows in all; every reason is in {tmp_path}/out/report.json" in captured.err
    kept = ShardedRecords(tmp_path / "out")
    assert [kept[index].record_id for index in range(7)] == ["row0", "row4", "row5", "row6", "row7", "row8", "row10"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [manifest["splits"][name]["rejected"] for name in ("train", "test")] == [4, 1]


def test_only_the_first_few_rejections_are_printed(lasers_copy, tmp_path, capsys):
    for number in range(7):
        change(lasers_copy, number, description="")
    assert run(lasers_copy, tmp_path / "out", "--split", "train") == 0
    error = capsys.readouterr().err
    assert error.count("rejected: ") == 5
    assert "rejected 7 rows in all" in error
    assert len(json.loads((tmp_path / "out/report.json").read_text())["rejected"]) == 7


@pytest.mark.parametrize("wrong", [{"description": ""}, {"mask": [encode(np.ones((40, 64)))]}, {"id": "row0"}])
def test_strict_stops_at_the_first_and_writes_nothing(lasers_copy, tmp_path, capsys, wrong):
    change(lasers_copy, 1, **wrong)
    change(lasers_copy, 5, image_name="nowhere.png")
    assert run(lasers_copy, tmp_path / "out", "--strict") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {lasers_copy}/{TRAIN}: row 'row")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run(lasers_copy, tmp_path / "out", "--strict", "--validate-only", "--report", str(tmp_path / "report")) == 2
    assert not (tmp_path / "report").exists()


def test_a_split_without_a_row_that_can_be_used_is_refused(lasers_copy, tmp_path, capsys):
    for number in range(3):
        change(lasers_copy, number, "test/annotations/test_short_query.json", description="")
    assert run(lasers_copy, tmp_path / "out") == 2
    assert "row 'row0': description is empty (none of the 3 rows of the split 'test' can be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # What is wrong with them is there to be read.
    assert run(lasers_copy, tmp_path / "out", "--validate-only", "--report", str(tmp_path / "report")) == 2
    assert len(json.loads((tmp_path / "report/report.json").read_text())["rejected"]) == 3


def test_an_image_of_another_split_is_not_trained_on(lasers_copy, tmp_path, capsys):
    shutil.copy(lasers_copy / "test/images/area/2.png", lasers_copy / "train/images/area/4.png")
    shape = SHAPES[2]
    change(lasers_copy, 4, mask=[], answer="There is none.")
    rows = rejections(lasers_copy, tmp_path)
    assert rows == [
        (
            "train",
            f"{TRAIN}: row 'row4'",
            "its image area/4.png is also that of test/annotations/test_short_query.json: row 'row2' in the split 'test'",
        )
    ]
    # Alone, the training split has nothing to be compared with.
    assert rejections(lasers_copy, tmp_path, split="train") == []
    with pytest.raises(UserError, match=r"row 'row4': its image area/4\.png is also that of"):
        build_shards("lasers", lasers_copy, tmp_path / "strict", strict=True)
    assert run(lasers_copy, tmp_path / "out", "--allow-shared-images") == 0
    assert "note: train: 1 rows have images that are in another split, too; they are kept, as asked for" in capsys.readouterr().err
    assert (ShardedRecords(tmp_path / "out")[4].height, ShardedRecords(tmp_path / "out")[4].width) == shape


def test_the_build_obeys_a_review(lasers_copy, tmp_path):
    decisions = {"row0": {"decision": "reject", "note": "a shadow"}, "row1": {"decision": "accept"}, "row5": {"decision": "reject"}}
    review = lasers_copy / "review.json"
    review.write_text(json.dumps({"format": "segearth-r2-review", "version": 1, "decisions": decisions}))
    assert rejections(lasers_copy, tmp_path, split="train") == [
        ("train", f"{TRAIN}: row 'row0'", "rejected in review: a shadow"),
        ("train", f"{TRAIN}: row 'row5'", "rejected in review"),
    ]
    manifest = build_shards("lasers", lasers_copy, tmp_path / "out", split="train")
    assert manifest["splits"]["train"]["records"] == 9
    review.write_text("{")
    with pytest.raises(UserError, match=r"review\.json: not a review file"):
        build_shards("lasers", lasers_copy, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_image_is_opened_once(lasers_folder, monkeypatch):
    opened = []
    monkeypatch.setattr("data_pipeline.validation.decode_image", lambda data, name: opened.append(name) or np.zeros((40, 64, 3), np.uint8))
    rows = tuple(row for row in lasers.read(lasers_folder, "train") if row.image_name == "area/0.png")
    assert len(rows) == 2
    checks = check_rows(CheckTask((("train", 0), ("train", 10)), rows))
    assert [check.reason for check in checks] == [None, None]
    assert len(opened) == 1


def test_the_report_is_the_same_for_any_number_of_workers(lasers_copy, tmp_path):
    for number in (2, 6):
        change(lasers_copy, number, mask=[], answer="[SEG]")
    (lasers_copy / "train/images/area/1.jpg").write_bytes(b"")
    for workers in (1, 2):
        validate_only("lasers", lasers_copy, tmp_path / str(workers), workers=workers)
    assert (tmp_path / "1/report.json").read_bytes() == (tmp_path / "2/report.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--validate-only"], "--report is missing"),
        ([], "--output is missing"),
        (["--validate-only", "--report", "/dev/null/x"], "/dev/null/x: cannot be made a folder"),
    ],
)
def test_missing_options_are_one_line(lasers_folder, capsys, options, message):
    assert main(["--source", "lasers", "--input", str(lasers_folder), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_more_masks_than_a_manifest_can_count(lasers_copy, tmp_path):
    empty = encode(np.zeros(SHAPES[0]))
    change(lasers_copy, 0, mask=[empty] * 32768, answer="[SEG]" * 32768)
    ((_, name, reason),) = rejections(lasers_copy, tmp_path, split="train")
    assert name == f"{TRAIN}: row 'row0'"
    assert reason == "a record has 32768 masks; at most 32767 can be written"


def test_real_images(data_dir, tmp_path):
    report = validate_only("lasers", data_dir / "lasers_sample", tmp_path)
    assert report["rejected"] == []
    test = report["splits"]["test"]
    assert test["records"] == 92
    assert sum(test["target_pixels"]["counts"]) + test["empty_masks"] == test["masks"] > 92
