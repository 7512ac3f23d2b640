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

from segearth_r2_jax.raster import rle

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = REPOSITORY / "launch" / "local_processes.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve records in three files, two of them with a question of another: images of several sizes, several masks, none at all."""
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
        "test_multi_cate": [row(n, names[n % 3], f"{n} rivers", 3 * n % 4) for n in range(4)],
    }
    for name, rows in files.items():
        (folder / "test" / "annotations" / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def arguments(checkpoint_dir: Path, data: Path) -> list[str]:
    # Batches of two: a row's last bits may depend on what else is in its batch.
    model = ["--checkpoint", str(checkpoint_dir), "--max-new-tokens", "8", "--batch-size", "2"]
    return ["evaluate", *model, "--data", str(data), "--benchmark", "lasers"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    compiled = tmp_path_factory.mktemp("compiled")
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def evaluate(arguments: list[str], environment: dict[str, str]):
    def evaluate(processes: int, output: Path) -> subprocess.CompletedProcess[str]:
        start = [str(LAUNCHER), "-n", str(processes)] if processes > 1 else ["-m", "segearth_r2_jax"]
        command = [sys.executable, *start, *arguments, "--output", str(output)]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)

    return evaluate


@pytest.fixture(scope="module")
def report(evaluate, tmp_path_factory) -> bytes:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("one")
    result = evaluate(1, folder)
    assert result.returncode == 0, result.stderr
    return (folder / "report.json").read_bytes()


@pytest.mark.parametrize("processes", [2, 4])
def test_the_report_is_that_of_one_process(evaluate, report, tmp_path, processes):
    result = evaluate(processes, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "report.json").read_bytes() == report
    # Something was found: a report without figures would be the same, too.
    assert json.loads(report)["all"]["predicted_masks"] > 0
    assert 0 < json.loads(report)["all"]["gIoU"] < 1
    # One speaks for all.
    said = [line for line in result.stdout.splitlines() if "report:" in line or "gIoU" in line]
    assert [line[:4] for line in said] == ["[0] "] * 2


def test_an_error_in_one_process_ends_all_with_its_line(evaluate, data, tmp_path):
    """A damaged mask is seen by the process that has its question, here the second."""
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
