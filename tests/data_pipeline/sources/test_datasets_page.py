"""docs/datasets.md names every reader with its licence, and its example of a folder of one's own can be run as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_example import blob, mask_picture, picture

from data_pipeline.build_shards import main
from data_pipeline.schema import MANIFEST
from data_pipeline.sources.registry import SOURCES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "datasets.md").read_text()


def test_every_reader_is_on_the_page():
    rows = re.findall(r"^\| \[`(\w+)`\]\(#([\w-]+)\) \| [^|]* \| ([^|]*) \| ([^|]*) \|", PAGE, re.MULTILINE)
    assert {name: (licence, tuple(splits.split(", "))) for name, _, licence, splits in rows} == {
        name: (source.licence, source.splits) for name, source in SOURCES.items()
    }
    sections = {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")): title for title in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)}
    for name, anchor, _, _ in rows:
        assert anchor in sections
        section = PAGE.partition(f"## {sections[anchor]}\n")[2].partition("\n## ")[0]
        assert f"python -m data_pipeline.build_shards --source {name} --input " in section
        assert SOURCES[name].home.rpartition("/")[2] in section
        assert name == "folder" or ("* Licence: " in section and "* Read from: " in section)


def test_the_example_of_a_folder(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    section = PAGE.partition("## A folder of your own")[2]
    (lines,) = re.findall(r"<<'END'\n(.*?\n)END\n", section, re.DOTALL)
    (command,) = re.findall(r"^python -m data_pipeline.build_shards (.*)$", section, re.MULTILINE)
    folder = tmp_path / "my_data"
    picture(folder / "harbour.jpg", 64, 80)
    picture(folder / "coast.png", 64, 80)
    mask_picture(folder / "masks/pier_1.png", blob(0, 64, 80))
    Image.fromarray(np.full((64, 80), 4, np.uint8)).save(folder / "classes.png")
    place = rasterio.transform.from_origin(13.0, 52.0, 0.001, 0.001)
    kind = {"driver": "GTiff", "height": 64, "width": 80, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    with rasterio.open(folder / "fields.tif", "w", transform=place, **kind) as dataset:
        dataset.write(np.ones((1, 64, 80), np.uint8))
    ring = [[13.01, 51.99], [13.02, 51.99], [13.02, 51.98], [13.01, 51.98], [13.01, 51.99]]
    (folder / "reservoir.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    (folder / "annotations.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0
    splits = json.loads((tmp_path / "my_shards" / MANIFEST).read_text())["splits"]
    assert {name: (split["records"], split["masks"]) for name, split in splits.items()} == {"train": (4, 4), "val": (1, 1)}
