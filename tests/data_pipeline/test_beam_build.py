"""Beam does the same work as the processes of one machine: the same bytes, the same report, the same refusals."""

from __future__ import annotations

import json

import pytest

from data_pipeline import beam_build
from data_pipeline.build_shards import build_shards
from data_pipeline.shard_task import InputChanged, divide
from data_pipeline.sources import lasers
from data_pipeline.validation import CheckTask, RowCheck, read_rows, validate
from segearth_r2_jax.errors import UserError


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(folder, output, *options) -> int:
    return beam_build.main(["--source", "lasers", "--input", str(folder), "--output", str(output), *options])


@pytest.fixture
def beam():
    return pytest.importorskip("apache_beam", reason="apache-beam is not installed (the extra `beam`)")


def test_tasks_travel_as_lines(lasers_folder, tmp_path):
    rows = list(read_rows(lasers.SOURCE, lasers_folder, "train"))
    task = CheckTask((("train", 3), ("train", 8)), (rows[3], rows[8]))
    assert travel(task, lasers_folder) == task
    validated = validate(lasers.SOURCE, lasers_folder, ("train", "test"), map)
    for task in divide(tmp_path, "train", validated.rows["train"], 3):
        assert travel(task, lasers_folder) == task
        assert len(json.dumps(beam_build.pack(task))) < 120 * len(task.rows) + 200


def travel(task, folder):
    kind, fields = json.loads(json.dumps(beam_build.pack(task)))
    return beam_build.unpack(kind, fields, "lasers", str(folder))


def test_annotations_that_are_gone_are_noticed(lasers_folder):
    task = CheckTask((("train", 99),), ())
    with pytest.raises(InputChanged, match="the annotations of 'train' have changed since they were checked"):
        travel(task, lasers_folder)


def test_results_are_json():
    check = RowCheck(None, "ab", 3, 4, (5, 6), "cd")
    assert RowCheck(*json.loads(json.dumps(check)))._replace(areas=(5, 6)) == check


def test_the_same_folder_as_build_shards(beam, lasers_copy, tmp_path):
    path = lasers_copy / "train/annotations/train_ann.json"
    path.write_text(path.read_text().replace("area/2.png", "../2.png"))
    command = ["--shards", "3"]
    assert run(lasers_copy, tmp_path / "beam/out", *command) == 0
    made = contents(tmp_path / "beam/out")
    assert [entry.name for entry in (tmp_path / "beam").iterdir()] == ["out"]
    said = json.loads(made["manifest.json"])["command"]
    assert said.startswith("python -m data_pipeline.beam_build --source lasers")
    build_shards("lasers", lasers_copy, tmp_path / "here", shards=3, command=said)
    assert made == contents(tmp_path / "here")
    assert json.loads(made["manifest.json"])["splits"]["train"]["rejected"] == 1


def test_an_error_in_a_worker_is_one_line(beam, lasers_copy, tmp_path, capsys):
    image = lasers_copy / "train/images/area/3.jpg"
    image.write_bytes(image.read_bytes()[:100])
    assert run(lasers_copy, tmp_path / "out", "--strict") == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: {lasers_copy}/train/annotations/train_ann.json: row 'row3': image ")
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_wrong_runner_is_one_line(beam, lasers_folder, tmp_path, capsys):
    assert run(lasers_folder, tmp_path / "out", "--", "--runner", "NoSuchRunner") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: Beam: ")
    assert list(tmp_path.iterdir()) == []


def test_without_beam_one_line_says_so(lasers_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    assert run(lasers_folder, tmp_path / "out") == 2
    assert capsys.readouterr().err == "error: apache-beam is not installed: pip install 'segearth-r2-jax[beam]'\n"
    with pytest.raises(UserError):
        beam_build.beam_mapper("lasers", lasers_folder, tmp_path)
