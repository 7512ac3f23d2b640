"""The example data set, once per session or as a copy that may be damaged, and a tokenizer that needs no file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lasers_example import write_lasers

from segearth_r2_jax.inputs import tokenizer


@pytest.fixture(scope="session")
def _lasers_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lasers")
    write_lasers(folder, 11)
    write_lasers(folder, 3, "test", "test_short_query.json")
    return folder


@pytest.fixture
def lasers_copy(_lasers_once, tmp_path) -> Path:
    """A copy of the data set that the test may damage."""
    return shutil.copytree(_lasers_once, tmp_path / "lasers", copy_function=shutil.copy2)


@pytest.fixture(scope="session")
def lasers_folder(_lasers_once) -> Path:
    """The data set: 11 training rows, one benchmark of 3 rows. Not to be changed."""
    return _lasers_once


@pytest.fixture(scope="session")
def small_tokenizer():
    return tokenizer.train_tokenizer(["the large tanks at the lake: The result is [SEG]."], vocab_size=300)
