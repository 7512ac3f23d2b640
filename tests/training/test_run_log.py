"""The log of a run, in a local folder and in a bucket."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from micro_run import micro_run
from PIL import Image

from segearth_r2_jax.training.run_log import RunLog

CONFIG = micro_run("", num_steps=9, print_every=4)


@pytest.fixture(params=["local", "bucket"])
def workdir(request, tmp_path) -> epath.Path:
    if request.param == "local":
        return epath.Path(tmp_path)
    request.getfixturevalue("empty_bucket")
    return epath.Path("gs://bucket/run")


def steps(workdir: epath.Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "log.jsonl").read_text().splitlines()]


def write(log: RunLog, numbers) -> None:
    for number in numbers:
        log.write(number, {"loss": 1 / number, "mfu": 0.5})


def test_a_log_goes_on_where_the_run_does(workdir, capsys):
    log = RunLog(workdir, CONFIG, first_step=0)
    write(log, range(1, 6))
    log.upload()
    write(log, [6])
    log.close()
    assert steps(workdir) == [1, 2, 3, 4, 5, 6]

    log = RunLog(workdir, CONFIG, first_step=4)
    write(log, range(5, 10))
    log.close()
    assert steps(workdir) == list(range(1, 10))
    assert json.loads((workdir / "log.jsonl").read_text().splitlines()[1]) == {"step": 2, "loss": 0.5, "mfu": 0.5}
    # One file of events per start.
    assert len(list((workdir / "tensorboard").iterdir())) == 2
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1/9", "4/9", "8/9", "9/9"]


def test_what_was_not_uploaded_is_what_the_run_does_again(empty_bucket):
    workdir = epath.Path("gs://bucket/run")
    log = RunLog(workdir, CONFIG, first_step=0)
    write(log, [1, 2, 3])
    log.upload()
    write(log, [4, 5])  # Killed before the next checkpoint.
    assert steps(workdir) == [1, 2, 3]
    log = RunLog(workdir, CONFIG, first_step=3)
    write(log, [4])
    log.close()
    assert steps(workdir) == [1, 2, 3, 4]
    assert not Path("gs:").exists()


def test_half_a_line_is_cut(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    log = RunLog(epath.Path(tmp_path), CONFIG, first_step=2)
    write(log, [3])
    log.close()
    assert steps(epath.Path(tmp_path)) == [1, 3]


def test_numbers_that_are_none_are_written_as_words(tmp_path):
    log = RunLog(epath.Path(tmp_path), CONFIG, first_step=0)
    log.write(1, {"loss": float("nan")})
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": "nan"}


def test_pictures_lie_beside_the_log(workdir):
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    log = RunLog(workdir, CONFIG, first_step=0)
    path = log.picture("step", 12, image)
    log.close()
    assert path == workdir / "samples" / "step_000012.png"
    with path.open("rb") as file:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    assert [path.name for path in (workdir / "samples").iterdir()] == ["step_000012.png"]
