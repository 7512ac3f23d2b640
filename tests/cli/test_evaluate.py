"""`segearth-r2 evaluate` over a small folder in the LaSeRS layout."""

import json

import numpy as np
import pytest
from cloud_bucket import bucket_in_memory
from PIL import Image

from segearth_r2_jax.cli.evaluate import RULES
from segearth_r2_jax.cli.main import main
from segearth_r2_jax.evaluation import metrics
from segearth_r2_jax.raster import rle


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "test"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for name, size in (("a", (40, 90)), ("b", (64, 64))):
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / "images" / f"{name}.png")
    half = np.zeros((40, 90), np.uint8)
    half[:, :45] = 1
    quarter = np.zeros((64, 64), np.uint8)
    quarter[:32, :32] = 1
    rows = [
        {"id": 1, "image_name": "a.png", "description": "the roof", "answer": "It is [SEG].", "mask": [rle.encode(half)]},
        {"id": 2, "image_name": "b.png", "description": "the river", "answer": "[SEG]", "mask": [rle.encode(quarter)]},
    ]
    (folder / "annotations" / "test_explicit.json").write_text(json.dumps(rows))
    (folder / "annotations" / "test_short_query.json").write_text(json.dumps(rows[:1]))
    return tmp_path / "data"


@pytest.fixture
def evaluate(checkpoint_dir, data, tmp_path):
    def run(*more):
        arguments = ["evaluate", "--checkpoint", str(checkpoint_dir), "--data", str(data), "--benchmark", "lasers"]
        main([*arguments, "--output", str(tmp_path / "report"), "--max-new-tokens", "10", *more])
        return json.loads((tmp_path / "report" / "report.json").read_text())

    return run


def test_report_and_table(evaluate, checkpoint_dir, capsys):
    report = evaluate("--batch-size", "2")
    out = capsys.readouterr().out
    assert list(report["files"]) == ["test_short_query", "test_explicit"]
    assert [figures["records"] for figures in report["files"].values()] == [1, 2]
    assert report["all"]["records"] == 3
    assert report["baselines"]["whole image"]["files"]["test_explicit"]["gIoU"] == pytest.approx((0.5 + 0.25) / 2)
    assert report["baselines"]["whole image"]["files"]["test_explicit"]["cIoU"] == pytest.approx((1800 + 1024) / (3600 + 4096))
    assert report["checkpoint"] == str(checkpoint_dir)
    assert len(report["missing_files"]) == 7
    assert report["rule"] == "original"
    assert "test_explicit" in out
    assert "(whole image)" in out


def test_limit_and_rule(evaluate):
    report = evaluate("--limit", "1", "--rule", "official-1024")
    assert [figures["records"] for figures in report["files"].values()] == [1, 1]
    assert (report["limit"], report["rule"]) == (1, "official-1024")


def test_a_damaged_annotation_is_one_line_and_leaves_no_report(evaluate, data, tmp_path, capsys):
    file = data / "test" / "annotations" / "test_explicit.json"
    rows = json.loads(file.read_text())
    rows[1]["mask"][0]["counts"] = "~~"
    file.write_text(json.dumps(rows))
    with pytest.raises(SystemExit) as end:
        evaluate()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "test_explicit.json" in line
    assert not (tmp_path / "report" / "report.json").exists()


def test_a_folder_of_another_layout(evaluate, data, capsys):
    for file in (data / "test" / "annotations").iterdir():
        file.unlink()
    with pytest.raises(SystemExit) as end:
        evaluate()
    assert end.value.code == 2
    assert "LaSeRS layout" in capsys.readouterr().err


def test_a_checkpoint_may_be_in_cloud_storage(evaluate, capsys):
    with bucket_in_memory(), pytest.raises(SystemExit):
        evaluate("--checkpoint", "gs://bucket/run")
    assert "gs://bucket/run/config.json" in capsys.readouterr().err


def test_the_command_offers_the_rules_that_there_are():
    assert RULES == metrics.RULES
