"""Every reader is found by its name, describes itself, and gives the answers that go with its masks."""

from __future__ import annotations

import pytest

from data_pipeline.sources.answers import masks_answer
from data_pipeline.sources.registry import SOURCES, get_source
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
