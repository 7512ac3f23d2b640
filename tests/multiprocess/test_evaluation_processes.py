"""An evaluation by several processes is that of one: the same report, byte for byte; and an error in one of them ends all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segearth_r2_jax.cli.main import main
from segearth_r2_jax.raster import rle

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = REPOSITORY / "launch" / "local_processes.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files with eleven records: images of several sizes, a question that stands in two files, several masks, none at all."""
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("data")
    (folder / "test" / "images").mkdir(parents=True)
    (folder / "test" / "annotations").mkdir()
    sizes = {"a.png": (40, 90), "b.png": (64, 64), "c.png": (100, 30)}
    for name, size in sizes.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / "test" / "images" / name)

    def row(number: int, name: str, instruction: str, masks: int) -> dict:
        drawn = [rle.encode((rng.random(sizes[name]) < 0.4).astype(np.uint8)) for _ in range(masks)]
        return {"id": number, "image_name": name, "description": instruction, "answer": "[SEG]" * masks, "mask": drawn}

    names = list(sizes)
    files = {
        "test_short_query": [row(n, names[n % 3], f"the roof {'and the river ' * (n // 3)}", 1 + n % 2) for n in range(6)],
        "test_explicit": [row(n, names[n % 2], "the roof ", 1) for n in range(2)],
        "test_multi_cate": [row(n, names[n], f"{n} rivers", 3 * n) for n in range(3)],
    }
    for name, rows in files.items():
        (folder / "test" / "annotations" / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def arguments(checkpoint_dir: Path, data: Path) -> list[str]:
    return ["evaluate", "--checkpoint", str(checkpoint_dir), "--data", str(data), "--benchmark", "lasers", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    compiled = tmp_path_factory.mktemp("compiled")
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def evaluate(arguments: list[str], environment: dict[str, str]):
    def evaluate(processes: int, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(LAUNCHER), "-n", str(processes), *arguments, "--output", str(output), *more]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)

    return evaluate


@pytest.mark.parametrize(("processes", "batch"), [(2, "2"), (4, "1")])
def test_the_report_is_that_of_one_process(evaluate, arguments, tmp_path, processes, batch):
    main([*arguments, "--output", str(tmp_path / "one"), "--batch-size", batch])
    result = evaluate(processes, tmp_path / "many", "--batch-size", batch)
    assert result.returncode == 0, result.stdout + result.stderr
    report = (tmp_path / "many" / "report.json").read_bytes()
    assert report == (tmp_path / "one" / "report.json").read_bytes()
    # Something was found: a report without figures would be the same, too.
    assert json.loads(report)["all"]["predicted_masks"] > 0
    assert 0 < json.loads(report)["all"]["gIoU"] < 1
    # One speaks for all.
    said = [line for line in result.stdout.splitlines() if "report:" in line or "gIoU" in line]
    assert [line[:4] for line in said] == ["[0] "] * 2


def test_an_error_in_one_process_ends_all_with_its_line(evaluate, data, tmp_path):
    """The last question is the other process's; its mask is damaged, which is seen when its turn comes."""
    file = data / "test" / "annotations" / "test_multi_cate.json"
    whole = file.read_text()
    rows = json.loads(whole)
    rows[1]["mask"][0]["counts"] = "~~"
    file.write_text(json.dumps(rows))
    try:
        result = evaluate(2, tmp_path / "report")
    finally:
        file.write_text(whole)
    assert result.returncode == 2, result.stdout + result.stderr
    told = [line for line in result.stdout.splitlines() if "error" in line]
    assert len(told) == 1
    assert told[0].startswith("[1] segearth-r2: error:")
    assert "test_multi_cate.json" in told[0]
    assert "Traceback" not in result.stdout
    assert not (tmp_path / "report" / "report.json").exists()


def test_what_all_processes_see_is_told_once(evaluate, tmp_path):
    result = evaluate(2, tmp_path / "report", "--data", str(tmp_path / "nowhere"))
    assert result.returncode == 2
    assert [line[:24] for line in result.stdout.splitlines() if "error" in line] == ["[0] segearth-r2: error: "]
