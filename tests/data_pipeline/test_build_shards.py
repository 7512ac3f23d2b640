"""The same data set gives the same shards; an interrupted build goes on; a wrong one leaves nothing that looks finished."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from data_pipeline.annotation import accepted
from data_pipeline.build_shards import build_shards, main
from data_pipeline.loader import ShardedRecords
from data_pipeline.sources import lasers
from data_pipeline.tfrecord import write_shard
from segearth_r2_jax.errors import UserError


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(folder, output, *options) -> int:
    return main(["--source", "lasers", "--input", str(folder), "--output", str(output), *options])


def test_shards_hold_the_records(lasers_folder, tmp_path, capsys):
    assert run(lasers_folder, tmp_path / "out", "--shards", "3") == 0
    assert capsys.readouterr().out == (
        "train: 11 records, 15 masks, 10 images in 3 shards\ntest: 3 records, 3 masks, 3 images in 3 shards\n"
    )
    for split, count in (("train", 11), ("test", 3)):
        records = ShardedRecords(tmp_path / "out", split)
        assert [records[index] for index in range(count)] == [row.load() for row in accepted(lasers.read(lasers_folder, split))]
        assert records.masks_per_record.tolist() == [number % 4 for number in range(count)]
    with pytest.raises(UserError, match="holds no split 'val'; it has train, test"):
        ShardedRecords(tmp_path / "out", "val")


def test_the_manifest_says_what_there_is(lasers_folder, tmp_path):
    manifest = build_shards("lasers", lasers_folder, tmp_path / "out", split="train", shards=2, command="python -m ...")
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "train-00000-of-00002.tfrecord",
        "train-00000-of-00002.tfrecord.index",
        "train-00001-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord.index",
    ]
    assert (manifest["source"], manifest["command"]) == ("lasers", "python -m ...")
    annotations = (lasers_folder / "train/annotations/train_ann.json").read_bytes()
    assert manifest["annotations"] == {"train/annotations/train_ann.json": hashlib.sha256(annotations).hexdigest()}
    train = manifest["splits"]["train"]
    assert (train["records"], train["masks"], train["images"]) == (11, 15, 10)
    for shard in train["shards"]:
        content = (tmp_path / "out" / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_same_input_gives_the_same_bytes(lasers_folder, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        build_shards("lasers", lasers_folder, tmp_path / name, shards=2, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_build_goes_on_where_it_was_interrupted(lasers_folder, tmp_path, monkeypatch):
    build_shards("lasers", lasers_folder, tmp_path / "whole", split="train", shards=4)
    written = []

    def interrupted(path, records):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return write_shard(path, records)

    monkeypatch.setattr("data_pipeline.build_shards.write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_shards("lasers", lasers_folder, tmp_path / "out", split="train", shards=4)
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        ShardedRecords(tmp_path / "out")
    # One of the two finished shards is damaged in the meantime, and the killed process left a part of the third.
    damaged = tmp_path / "out" / written[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    (tmp_path / "out/train-00002-of-00004.tfrecord.77.partial").write_bytes(b"half")
    first = written[0]
    written.clear()
    monkeypatch.setattr(
        "data_pipeline.build_shards.write_shard", lambda path, records: (written.append(path.name), write_shard(path, records))
    )
    build_shards("lasers", lasers_folder, tmp_path / "out", split="train", shards=4)
    assert first not in written
    assert len(written) == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # Once more: all is there.
    written.clear()
    build_shards("lasers", lasers_folder, tmp_path / "out", split="train", shards=4)
    assert written == []
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_wrong_image_is_put_right_and_the_build_goes_on(lasers_copy, tmp_path, capsys):
    image = lasers_copy / "train/images/area/3.jpg"
    good = image.read_bytes()
    image.write_bytes(good[:100])
    output = tmp_path / "out"
    assert run(lasers_copy, output, "--split", "train", "--shards", "11") == 2
    assert not (output / "manifest.json").exists()
    assert not list(output.glob("*.partial"))
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tfrecord")}
    assert len(kept) == 3
    image.write_bytes(good)
    assert run(lasers_copy, output, "--split", "train", "--shards", "11") == 0
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == kept
    records = ShardedRecords(output)
    assert records[3].image_bytes == good
    assert capsys.readouterr().err.count("error: ") == 1


def test_changed_input_is_never_mixed_with_old_shards(lasers_copy, tmp_path, monkeypatch):
    output = tmp_path / "out"
    monkeypatch.setattr("data_pipeline.build_shards._run", lambda tasks, workers: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_shards("lasers", lasers_copy, output, split="train", shards=2)
    monkeypatch.undo()
    # A shard of another division, and one whose row has changed since.
    for name in ("train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"):
        write_shard(output / name, [b"old"])
    path = lasers_copy / "train/annotations/train_ann.json"
    path.write_text(path.read_text().replace("the 0 large tanks", "the zero large tanks"))
    build_shards("lasers", lasers_copy, output, split="train", shards=3)
    assert not list(output.glob("*of-00002*"))
    assert ShardedRecords(output)[0].instruction == "the zero large tanks at the lake"
    # A finished build is not overwritten.
    path.write_text(path.read_text().replace("the zero large tanks", "no large tanks"))
    before = contents(output)
    with pytest.raises(UserError, match="holds the finished shards of another input"):
        build_shards("lasers", lasers_copy, output, split="train", shards=3)
    assert contents(output) == before


def test_a_folder_with_something_else_is_left_alone(lasers_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"is not empty \(it holds thesis\.tex\)"):
        build_shards("lasers", lasers_folder, tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: is damaged"):
        build_shards("lasers", lasers_folder, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["plan.json", "thesis.tex"]


def test_a_plan_cannot_remove_files_elsewhere(lasers_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan.json").write_text(json.dumps({"../thesis.tex": "0"}))
    build_shards("lasers", lasers_folder, tmp_path / "out", split="test")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "0"], "--workers and --shards must be at least 1"),
        (["--workers", "0"], "--workers and --shards must be at least 1"),
        (["--input", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(lasers_folder, tmp_path, capsys, options, message):
    assert run(lasers_folder, tmp_path / "out", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_wrong_row_is_one_line_and_status_2(lasers_copy, tmp_path, capsys):
    path = lasers_copy / "train/annotations/train_ann.json"
    path.write_text(path.read_text().replace("area/2.png", "../2.png"))
    assert run(lasers_copy, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "train_ann.json: row 'row2': image_name '../2.png' leaves the folder" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_layout_is_named(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "out") == 2
    assert "holds neither train/annotations nor test/annotations" in capsys.readouterr().err
