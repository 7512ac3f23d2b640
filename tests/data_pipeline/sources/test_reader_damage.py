"""Random damage to the files of every source: one line that names a file, never a traceback, never half a build."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_earth_reason_source
import test_folder_source
import test_geopixeld_source
import test_lrs_gro_source
import test_ref_segrs_source
import test_risbench_source
import test_rrsis_d_source

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from corruptions import STRANGE, damage_bytes, rewrite, run

from data_pipeline.build_shards import main as build

earth_reason = test_earth_reason_source.folder
own_folder = test_folder_source.folder
geopixeld = test_geopixeld_source.folder
lrs_gro = test_lrs_gro_source.folder
ref_segrs = test_ref_segrs_source.folder
risbench = test_risbench_source.folder
rrsis_d = test_rrsis_d_source.data

CASES = 30
SOURCES = {
    "earth_reason": "earth_reason",
    "own_folder": "folder",
    "geopixeld": "geopixeld",
    "lrs_gro": "lrs_gro",
    "ref_segrs": "refsegrs",
    "risbench": "risbench",
    "rrsis_d": "rrsis_d",
}


def damage_json(content: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """Any value of a JSON file, or of a line of a JSONL file, lost, doubled or of another type."""
    lines = content.decode().splitlines()
    number = int(random.integers(len(lines)))
    try:
        tree = json.loads(content)
        number, lines = 0, [""]
    except ValueError:
        tree = json.loads(lines[number])
    nodes = list(walk([tree]))
    parent, key = nodes[random.integers(len(nodes))]
    how = str(random.choice(["type", "type", "delete", "double"]))
    if how == "type":
        parent[key] = copy.deepcopy(STRANGE[random.integers(len(STRANGE))])
    elif how == "double":
        parent[key] = [parent[key], copy.deepcopy(parent[key])]
    elif parent[key] is not tree:
        del parent[key]
    lines[number] = json.dumps(tree)
    return "\n".join(lines).encode(), f"{how} {key!r}"


def walk(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a tree with every one of its keys."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from walk(value)


@pytest.mark.parametrize("fixture", SOURCES)
def test_random_damage(fixture, request, tmp_path, tmp_path_factory):
    request.getfixturevalue(fixture)
    source = SOURCES[fixture]
    whole = tmp_path_factory.mktemp("whole")
    assert run(build, "--source", source, "--input", tmp_path, "--output", whole / "out", "--allow-shared-images")[0] == 0
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    outcomes = set()
    for seed in range(CASES):
        random = np.random.default_rng(seed)
        place = whole / str(seed)
        data = shutil.copytree(tmp_path, place / "data")
        file = data / files[random.integers(len(files))].relative_to(tmp_path)
        change = damage_json if file.suffix in (".json", ".jsonl") and random.random() < 0.7 else damage_bytes
        done = f"{source}, seed {seed}: {file.name}: {rewrite(file, change, random)}"
        status, said = run(build, "--source", source, "--input", data, "--output", place / "out", "--allow-shared-images")
        outcomes.add(status)
        if status == 2:
            assert said.startswith(f"error: {data}"), (done, said)
            assert said.count("\n") == 1, (done, said)
            assert not (place / "out").exists()
        else:
            assert status == 0, (done, said)
            for entry in json.loads((place / "out/report.json").read_text())["rejected"]:
                assert any(path.name in entry["name"] for path in data.rglob("*")), (done, entry)
                assert "\n" not in entry["reason"], (done, entry)
    assert outcomes
