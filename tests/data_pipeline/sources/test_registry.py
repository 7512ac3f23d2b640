"""Every reader is found by its name, describes itself, and gives the answers that go with its masks."""

from __future__ import annotations

import json
import os

import pytest
from source_example import HEIGHT, WIDTH, annotations, blob, mask_picture, picture
from test_rrsis_d_source import DataSet as RrsisD

from data_pipeline.check_cache import AnnotationFiles, CheckCache, write_cache
from data_pipeline.sources.answers import masks_answer
from data_pipeline.sources.registry import SOURCES, get_source
from data_pipeline.validation import CheckedRow, RowCheck, Validated
from segearth_r2_jax.errors import UserError

NAMES = ["lasers", "earth_reason", "rrsis_d", "refsegrs", "risbench", "lrs_gro", "geopixeld", "folder"]


def test_every_reader_by_its_name():
    assert list(SOURCES) == NAMES
    for name in NAMES:
        assert get_source(name).name == name
        assert get_source(name).title
        assert get_source(name).licence
    with pytest.raises(UserError, match="--source lazers: no such source; there are lasers, earth_reason, "):
        get_source("lazers")


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_is_named(name, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=f"^{folder}"):
            get_source(name).present(folder)
        for split in get_source(name).splits:
            with pytest.raises(UserError, match=f"^{folder}"):
                list(get_source(name).read(folder, split))


def test_answers():
    assert [masks_answer(count) for count in range(4)] == [
        "There is no target object in the image.",
        "Sure, it is [SEG].",
        "Sure, it is [SEG] and [SEG].",
        "Sure, it is [SEG], [SEG] and [SEG].",
    ]


def test_what_was_found_about_a_row_holds_only_while_its_files_are_the_same(tmp_path):
    """Masks and questions may lie in other files than the rows: a build that goes on has to see that they have changed."""
    ring = [[1, 2], [5, 2], [5, 9]]
    texts = {
        "folder/a.geojson": {"type": "Polygon", "coordinates": [ring]},
        "folder/a.jsonl": {"image": "a.png", "instruction": "the pier", "masks": ["a.geojson"]},
        "geopixeld/GeoPixelD.json": [],
        "geopixeld/train/a.json": {"img": "a.png", "gcg_description": "The [SEG].", "polygons": [[ring]]},
        "earth_reason/train/QAs/a.json": {"questions": ["Where?"], "answer": []},
    }
    RrsisD(tmp_path)
    for name, content in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    for name in ("folder/a.png", "geopixeld/train/a.png", "earth_reason/train/images/a.png"):
        picture(tmp_path / name)
    mask_picture(tmp_path / "earth_reason/train/labels/a.png", blob(0), 0)
    for source, folder, file in (
        ("rrsis_d", "", "rrsisd/instances.json"),
        ("folder", "folder", "folder/a.geojson"),
        ("geopixeld", "geopixeld", "geopixeld/GeoPixelD.json"),
        ("earth_reason", "earth_reason", "earth_reason/train/labels/a.png"),
    ):
        row = annotations(SOURCES[source], tmp_path / folder, "train")[0]
        files = AnnotationFiles(tmp_path / folder)
        check = RowCheck(None, "digest", HEIGHT, WIDTH, (1,), "digest")
        write_cache(tmp_path / "cache", Validated({"train": [CheckedRow(0, row, check)]}, [], []), files)
        assert CheckCache(tmp_path / "cache", files).get("train", 0, row) == check
        status = (tmp_path / file).stat()
        os.utime(tmp_path / file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert CheckCache(tmp_path / "cache", files).get("train", 0, row) is None, source
