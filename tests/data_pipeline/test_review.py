"""The review page holds every row that a person can judge; `tests/browser` clicks on it."""

from __future__ import annotations

import json
import re

import pytest
from lasers_example import write_lasers
from PIL import Image

from data_pipeline.review import main, write_review


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', (page / "index.html").read_text(), re.DOTALL)[1])


def test_every_row_is_there_with_its_pictures(lasers_folder, tmp_path, capsys):
    assert main(["--input", str(lasers_folder), "--output", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/page/index.html: 11 rows; open it in a browser\n"
    data = data_of(tmp_path / "page")
    assert [row["id"] for row in data["rows"]] == [f"row{number}" for number in range(11)]
    for number, row in enumerate(data["rows"]):
        assert len(row["places"]) == number % 4
        assert [mask for _, mask in row["answer"] if mask is not None] == list(range(number % 4))
        for path in [row["image"], *(layer for layer, _ in row["layers"])]:
            with Image.open(tmp_path / "page" / path) as picture:
                picture.load()
    images = {row["image"] for row in data["rows"]}
    assert len(images) == 10, "an image of several rows is there once"
    written = {path.relative_to(tmp_path / "page").as_posix() for path in (tmp_path / "page/images").iterdir()}
    assert written == images | {layer for row in data["rows"] for layer, _ in row["layers"]}


def test_a_question_that_stands_in_several_test_files_is_shown_once(tmp_path):
    for file in ("test_explicit.json", "test_short_query.json"):
        write_lasers(tmp_path / "set", 3, "test", file)
    assert write_review(tmp_path / "set", tmp_path / "page", split="test") == 3
    assert [row["tags"] for row in data_of(tmp_path / "page")["rows"]] == [{"reasoning": "explicit", "language": "short"}] * 3


def test_some_rows_at_random_in_their_order(lasers_folder, tmp_path):
    assert write_review(lasers_folder, tmp_path / "a", samples=4) == 4
    assert write_review(lasers_folder, tmp_path / "b", samples=4) == 4
    assert write_review(lasers_folder, tmp_path / "c", samples=99) == 11
    assert data_of(tmp_path / "a") == data_of(tmp_path / "b")
    ids = [int(row["id"][3:]) for row in data_of(tmp_path / "a")["rows"]]
    assert ids == sorted(set(ids))
    assert "4 of 11 rows, drawn at random" in (tmp_path / "a/index.html").read_text()


def test_decisions_are_kept_apart_by_data_set_and_taken_from_the_folder(lasers_copy, lasers_folder, tmp_path):
    write_review(lasers_folder, tmp_path / "a")
    decisions = {"row3": {"decision": "reject", "note": "no"}, "row5": {"decision": "accept"}}
    content = {"format": "segearth-r2-review", "version": 1, "decisions": decisions}
    (lasers_copy / "review.json").write_text(json.dumps(content))
    write_review(lasers_copy, tmp_path / "b")
    first, second = data_of(tmp_path / "a"), data_of(tmp_path / "b")
    assert second["decisions"] == {"row3": {"decision": "reject", "note": "no"}, "row5": {"decision": "accept", "note": ""}}
    assert len(second["rows"]) == 11, "a rejected row may be accepted after all"
    assert first["key"] == second["key"]
    path = lasers_copy / "train/annotations/train_ann.json"
    path.write_text(path.read_text().replace("the 0 large tanks", "the zero large tanks"))
    write_review(lasers_copy, tmp_path / "c")
    assert data_of(tmp_path / "c")["key"] != first["key"]


def test_rows_that_cannot_be_used_are_listed(lasers_copy, tmp_path, capsys):
    path = lasers_copy / "train/annotations/train_ann.json"
    rows = json.loads(path.read_text())
    rows[2]["answer"] += "[SEG]"
    path.write_text(json.dumps(rows))
    (lasers_copy / "train/images/area/1.jpg").write_bytes(b"no image")
    assert write_review(lasers_copy, tmp_path / "page") == 9
    page = (tmp_path / "page/index.html").read_text()
    assert "3 [SEG], but there are 2 masks" in page
    assert "not an image" in page
    path.write_text(json.dumps(rows[2:3]))
    assert main(["--input", str(lasers_copy), "--output", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: .*no row of the split 'train' can be used; the first: .*row 'row2': the answer has 3", error)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--samples", "0"], "--samples must be at least 1"), (["--input", "/nowhere"], "/nowhere: no such folder")],
)
def test_wrong_use_is_one_line_and_status_2(lasers_folder, tmp_path, capsys, options, message):
    assert main(["--input", str(lasers_folder), "--output", str(tmp_path / "page"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_damaged_decisions_are_named(lasers_copy, tmp_path, capsys):
    (lasers_copy / "review.json").write_text("{")
    assert main(["--input", str(lasers_copy), "--output", str(tmp_path / "page")]) == 2
    assert "review.json: not a review file" in capsys.readouterr().err
