"""`inspect` shows shards and data sets alike, says what it left out, and writes a page or nothing."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import numpy as np
import pytest
from lasers_example import png

from data_pipeline.build_shards import build_shards
from data_pipeline.inspect import JPEG_BYTES, SIDE, inspect_shards, main
from data_pipeline.pages.pictures import make_jpeg, make_picture
from data_pipeline.pages.samples import sample_card
from data_pipeline.schema import Record
from segearth_r2_jax.raster.rle import encode


def texts(page):
    return html.unescape(
        re.sub(r"<style>.*?</style>|<script>.*?</script>|<title>.*?</title>|<[^>]*>", "|", page.read_text(), flags=re.DOTALL)
    )


def articles(page):
    return re.findall(r"<article.*?</article>", page.read_text(), re.DOTALL)


def test_shards_and_their_source_give_the_same_samples(lasers_folder, tmp_path, capsys):
    build_shards("lasers", lasers_folder, tmp_path / "shards")
    assert main(["--shards", str(tmp_path / "shards"), "--output", str(tmp_path / "a"), "--samples", "5"]) == 0
    source = ["--source", "lasers", "--input", str(lasers_folder)]
    assert main([*source, "--output", str(tmp_path / "b"), "--samples", "5"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a/index.html: open it in a browser\n{tmp_path}/b/index.html: open it in a browser\n"
    first, second = tmp_path / "a/index.html", tmp_path / "b/index.html"
    assert len(articles(first)) == 5
    assert articles(first) == articles(second)
    assert "all records were looked at" in texts(first)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["index.html"]


def test_the_seed_decides_what_is_shown(lasers_folder, tmp_path):
    build_shards("lasers", lasers_folder, tmp_path / "shards")
    pages = [inspect_shards(tmp_path / "shards", "train", tmp_path / f"{n}", samples=4, seed=s) for n, s in enumerate((0, 0, 1, 2, 3))]
    shown = [tuple(re.findall(r"row\d+", "".join(articles(page)))) for page in pages]
    assert shown[0] == shown[1]
    assert len(set(shown)) > 1


def test_a_part_of_a_large_set_is_looked_at_and_the_page_says_so(lasers_folder, tmp_path):
    build_shards("lasers", lasers_folder, tmp_path / "shards")
    page = inspect_shards(tmp_path / "shards", "train", tmp_path / "page", scan=6, samples=100)
    assert "6 of 11, drawn at random, records were looked at" in texts(page)
    assert len(articles(page)) == 6


def test_records_that_cannot_be_used_are_listed_and_others_shown_instead(lasers_copy, tmp_path):
    path = lasers_copy / "train/annotations/train_ann.json"
    rows = json.loads(path.read_text())
    rows[2]["answer"] += "[SEG]"
    rows[3]["mask"][0]["counts"] = "0"
    rows[4]["id"] = rows[5]["id"]
    path.write_text(json.dumps(rows))
    (lasers_copy / "train/images/area/1.jpg").write_bytes(b"no image")  # of row 1 alone
    decisions = {"row6": {"decision": "reject", "note": "too dark"}}
    (lasers_copy / "review.json").write_text(json.dumps({"format": "segearth-r2-review", "version": 1, "decisions": decisions}))
    output = tmp_path / "page"
    assert main(["--source", "lasers", "--input", str(lasers_copy), "--output", str(output)]) == 0
    said = texts(output / "index.html")
    for reason in ("3 [SEG], but there are 2 masks", "the RLE's runs cover", "has the same id", "not an image", "review: too dark"):
        assert reason in said
    assert len(articles(output / "index.html")) == 6
    assert re.search(r"cannot be used\|+5\|", said)


def test_a_set_in_which_nothing_can_be_used_gives_a_page_that_says_why(lasers_copy, tmp_path):
    for image in (lasers_copy / "train/images/area").iterdir():
        image.write_bytes(b"no image")
    assert main(["--source", "lasers", "--input", str(lasers_copy), "--output", str(tmp_path / "page")]) == 0
    said = texts(tmp_path / "page/index.html")
    assert said.count("is not an image") == 11
    assert articles(tmp_path / "page/index.html") == []


def test_answers_and_masks_that_are_withheld_or_empty(lasers_folder, tmp_path):
    image = png(np.full((20, 30, 3), 90, np.uint8))
    picture = make_picture(make_jpeg(np.zeros((20, 30, 3), np.uint8), 100, 9999), [], 100)
    common = ("r", "test.json", "a.png", image, 20, 30, "find")
    assert "The answer is withheld." in sample_card(Record(*common, None, None), picture)
    assert "No mask." in sample_card(Record(*common, "There is none.", ()), picture)
    empty = encode(np.zeros((20, 30)))
    assert "No mask." not in sample_card(Record(*common, "[SEG]", (empty,)), picture)


def test_a_question_about_a_region_shows_the_region():
    image = png(np.full((20, 40, 3), 90, np.uint8))
    picture = make_picture(make_jpeg(np.zeros((20, 40, 3), np.uint8), 100, 9999), [], 100)
    record = Record("r", "test.json", "a.png", image, 20, 40, "What is it?", "A pier.", (), box=(10, 5, 30, 20))
    assert '<span class="box" style="left:25.00%;top:25.00%;width:50.00%;height:75.00%">' in sample_card(record, picture)
    assert 'class="box"' not in sample_card(dataclasses.replace(record, box=None), picture)


def test_two_hundred_large_samples_are_less_than_15_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    # A picture as hard to compress as an aerial image: noise at every scale.
    image = np.zeros((1024, 1024, 3))
    for side in (8, 32, 128, 512, 1024):
        image += np.kron(rng.normal(0, 25, (side, side, 3)), np.ones((1024 // side, 1024 // side, 1)))
    image = np.clip(image + 110, 0, 255).astype(np.uint8)
    masks = [np.hypot(*(np.mgrid[:1024, :1024] - rng.integers(0, 1024, (2, 1, 1)))) < rng.integers(10, 200) for _ in range(6)]
    record = Record("r", "train.json", "a.png", b"", 1024, 1024, "find " * 60, "<p>it</p>[SEG] " * 6, tuple(encode(m) for m in masks))
    picture = make_picture(make_jpeg(image, SIDE, JPEG_BYTES), masks, SIDE)
    assert 200 * len(sample_card(record, picture)) < 15_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "-1"], "--samples must be at least 0"),
        (["--scan", "0"], "--scan at least 1"),
        (["--split", "val"], "has no split 'val'; it has train, test"),
        (["--input", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(lasers_folder, tmp_path, capsys, options, message):
    assert main(["--source", "lasers", "--input", str(lasers_folder), "--output", str(tmp_path / "page"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_leaves_no_page(lasers_folder, tmp_path, capsys):
    build_shards("lasers", lasers_folder, tmp_path / "shards", shards=1)
    shard = tmp_path / "shards/train-00000-of-00001.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["--shards", str(tmp_path / "shards"), "--output", str(tmp_path / "page")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert shard.name in error
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_folder_with_something_else_is_left_alone(lasers_folder, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert main(["--source", "lasers", "--input", str(lasers_folder), "--output", str(tmp_path)]) == 2
    assert "is not empty; expected a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(SystemExit):
        main(["--source", "lasers", "--output", str(tmp_path / "page")])


def test_real_images(data_dir, tmp_path):
    source = ["--source", "lasers", "--input", str(data_dir / "lasers_sample"), "--split", "test"]
    assert main([*source, "--output", str(tmp_path / "page"), "--samples", "12", "--scan", "24"]) == 0
    page = tmp_path / "page/index.html"
    assert len(articles(page)) == 12
    assert "cannot be used" not in texts(page)
    assert page.stat().st_size < 12 * 75_000
