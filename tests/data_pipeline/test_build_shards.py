"""The same data set gives the same shards; an interrupted build goes on; a wrong one leaves nothing that looks finished."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.annotation import accepted
from data_pipeline.build_shards import build_shards, local_processes, main
from data_pipeline.schema import FEATURES
from data_pipeline.shard_folder import ShardedRecords
from data_pipeline.shard_output import claim
from data_pipeline.sources import lasers
from data_pipeline.tfrecord import write_shard
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import decode_image

REPOSITORY = Path(__file__).resolve().parents[2]


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
        "report.html",
        "report.json",
        "train-00000-of-00002.tfrecord",
        "train-00000-of-00002.tfrecord.index",
        "train-00001-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord.index",
    ]
    assert (manifest["source"], manifest["command"]) == ("lasers", "python -m ...")
    assert (manifest["home"], manifest["licence"]) == (lasers.SOURCE.home, lasers.SOURCE.licence)
    assert set(manifest["features"]) == set(FEATURES)
    annotations = (lasers_folder / "train/annotations/train_ann.json").read_bytes()
    assert manifest["annotations"] == {"train/annotations/train_ann.json": hashlib.sha256(annotations).hexdigest()}
    train = manifest["splits"]["train"]
    assert (train["records"], train["rejected"], train["masks"], train["images"]) == (11, 0, 15, 10)
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

    monkeypatch.setattr("data_pipeline.shard_task.write_shard", interrupted)
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
        "data_pipeline.shard_task.write_shard", lambda path, records: (written.append(path.name), write_shard(path, records))
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


def test_an_interrupted_build_opens_only_images_that_changed(lasers_copy, tmp_path, monkeypatch):
    output = tmp_path / "out"
    interrupted_build(lasers_copy, output, monkeypatch)
    changed = lasers_copy / "train/images/area/3.jpg"
    changed.write_bytes(changed.read_bytes() + b"more")
    opened = []

    def decode(data, name):
        opened.append(name.rpartition("/")[2])
        return decode_image(data, name)

    monkeypatch.setattr("data_pipeline.validation.decode_image", decode)
    build_shards("lasers", lasers_copy, output, split="train")
    assert opened == ["3.jpg"]
    build_shards("lasers", lasers_copy, tmp_path / "at_once", split="train")
    assert contents(output) == contents(tmp_path / "at_once")


def interrupted_build(folder, output, monkeypatch):
    """A build that ends after the validation pass."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.shard_task.write_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_shards("lasers", folder, output, split="train")


@pytest.mark.parametrize("damage", ["flip", "empty", "absent"])
def test_damage_to_what_an_unfinished_build_remembers_costs_only_time(lasers_folder, tmp_path, monkeypatch, damage):
    output = tmp_path / "out"
    interrupted_build(lasers_folder, output, monkeypatch)
    checks = output / "checks.json"
    content = bytearray(checks.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "absent":
        checks.unlink()
    else:
        checks.write_bytes(content if damage == "flip" else b"")
    build_shards("lasers", lasers_folder, output, split="train")
    build_shards("lasers", lasers_folder, tmp_path / "at_once", split="train")
    assert contents(output) == contents(tmp_path / "at_once")


def test_an_image_that_changes_between_the_passes_is_noticed(lasers_copy, tmp_path, monkeypatch):
    output = tmp_path / "out"
    image = lasers_copy / "train/images/area/3.jpg"

    def change_then_claim(*arguments):
        claim(*arguments)
        image.write_bytes(image.read_bytes() + b"more")

    monkeypatch.setattr("data_pipeline.build_shards.claim", change_then_claim)
    with pytest.raises(UserError, match=r"row 'row3': it, or its image .*3\.jpg, has changed since it was checked; run the command again"):
        build_shards("lasers", lasers_copy, output, split="train")
    assert not list(output.glob("*.partial"))
    monkeypatch.undo()
    build_shards("lasers", lasers_copy, output, split="train")
    assert ShardedRecords(output)[3].image_bytes.endswith(b"more")


def test_changed_input_is_never_mixed_with_old_shards(lasers_copy, tmp_path, monkeypatch):
    output = tmp_path / "out"
    monkeypatch.setattr("data_pipeline.build_shards._write_shards", lambda *_: 1 / 0)
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
    assert run(lasers_copy, tmp_path / "out", "--strict") == 2
    error = capsys.readouterr().err
    assert "train_ann.json: row 'row2': image_name '../2.png' leaves the folder" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_layout_is_named(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "out") == 2
    assert "holds neither train/annotations nor test/annotations" in capsys.readouterr().err


# Kills its process in the middle of the fourth shard.
KILLED = """
import os, pathlib, signal, sys
from data_pipeline import build_shards, shard_task
write_shard = shard_task.write_shard

def write(path, records):
    if "00003" not in path.name:
        return write_shard(path, records)

    def killed():
        yield from records
        os.kill(os.getpid(), signal.SIGKILL)

    return write_shard(path, killed())

shard_task.write_shard = write
build_shards.build_shards("lasers", pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), split="train", shards=11)
"""


def test_a_killed_process_leaves_what_the_next_one_finishes(lasers_folder, tmp_path):
    output = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, lasers_folder, output], cwd=REPOSITORY, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in output.iterdir()}
    assert len([name for name in left if name.endswith(".partial")]) == 1
    assert len([name for name in left if name.endswith(".tfrecord")]) == 3
    assert "manifest.json" not in left
    build_shards("lasers", lasers_folder, output, split="train", shards=11)
    build_shards("lasers", lasers_folder, tmp_path / "at_once", split="train", shards=11)
    assert contents(output) == contents(tmp_path / "at_once")


def test_a_full_disk_is_one_line_and_no_half_shard(lasers_folder, tmp_path):
    # A limit on the size of files stands in for the full disk: the system refuses a write in the middle of a shard.
    options = ["--source", "lasers", "--input", lasers_folder, "--output", tmp_path / "out", "--split", "train", "--shards", "1"]
    command = shlex.join(map(str, [sys.executable, "-m", "data_pipeline.build_shards", *options]))
    full = subprocess.run(["bash", "-c", f"ulimit -f 16; exec {command}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert full.returncode == 2
    assert full.stderr.splitlines() == [f"error: {tmp_path}/out/train-00000-of-00001.tfrecord: cannot be written (File too large)"]
    assert sorted(os.listdir(tmp_path / "out")) == ["checks.json", "plan.json"]
    build_shards("lasers", lasers_folder, tmp_path / "out", split="train", shards=1)


def test_a_killed_worker_is_one_line():
    with local_processes(2) as mapper, pytest.raises(UserError, match="a worker process was killed"):
        list(mapper(os._exit, [1]))
