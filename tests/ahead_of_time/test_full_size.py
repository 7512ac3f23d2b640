"""The published configuration, compiled for pods: minutes per program."""

import json
from pathlib import Path

import pytest

from segearth_r2_jax.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = str(REPOSITORY / "configs" / "segearth_r2_lasers.py")
TINY = str(REPOSITORY / "configs" / "segearth_r2_tiny.py")

pytestmark = pytest.mark.slow


def _compiled(folder: Path, config: str, *arguments: str) -> dict:
    pytest.importorskip("libtpu", reason="libtpu is absent: nothing can be compiled for a TPU")
    output = folder / "report.json"
    main(["compile", "--config", config, "--output", str(output), *arguments])
    (program,) = json.loads(output.read_text())["programs"]
    return program


def test_the_tiny_preset_fits_one_host(tmp_path):
    program = _compiled(tmp_path, TINY, "--topology", "v5e:2x2")
    assert program["sizes"] == {"images per device": 4, "images": 16, "tokens": 192, "masks": 3}
    assert program["memory"]["fits"]


def test_one_image_per_device_of_the_full_size_fits_v5e(tmp_path):
    program = _compiled(tmp_path, CONFIG, "--topology", "v5e:4x4", "--batch-per-device", "1", "--tokens", "1024")
    assert program["memory"]["fits"], program["memory"]
    assert program["mesh"] == {"data": 1, "fsdp": 16, "tensor": 1}
    # 3.3 B parameters, the frozen ones in bfloat16 and the trained ones with two moments in float32, split 16 ways.
    assert 0.4 * 2**30 < program["memory"]["arguments"] < 1.2 * 2**30
    cost = program["cost"]
    assert cost["unknown_loops"] == []
    # Recomputation of the language model adds at least its forward pass.
    assert cost["executed_flops"] > 1.2 * cost["model_flops"]


def test_bytes_per_device_do_not_grow_with_the_data_axis(tmp_path):
    """At one image per device: 2 or 32 groups along data, 8 devices along fsdp in each."""
    bytes_along = []
    for topology, data in (("v5e:4x4", 2), ("v5e:16x16", 32)):
        mesh = f"data={data},fsdp=8"
        program = _compiled(tmp_path, CONFIG, "--topology", topology, "--mesh", mesh, "--batch-per-device", "1", "--tokens", "1024")
        sums: dict[str, int] = {}
        for exchange in program["cost"]["exchanges"]:
            sums[exchange["axes"]] = sums.get(exchange["axes"], 0) + exchange["bytes"]
        bytes_along.append(sums)
    few, many = bytes_along
    assert few["data"] > 0
    assert sum(many.values()) <= 1.01 * sum(few.values()), (few, many)
    assert many["data"] <= 1.01 * few["data"], (few, many)
