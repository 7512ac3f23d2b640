"""Reads a pickle of numpy arrays in containers, such as detectron2's `.pkl` weights, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import MappedFile
from segearth_r2_jax.checkpoints.torch_files.pickle_constructors import python_and_numpy_constructors
from segearth_r2_jax.restricted_pickle import load_pickle


def read_numpy_pickle(path: str | Path) -> Any:
    """The value of the pickle at `path`, of any protocol: dicts, lists, texts, numbers; arrays are `LazyTensor`s without a name.

    Arrays whose bytes the pickle holds as bytes (what Python 3 writes in protocols 3 to 5) are views of the mapped file; those that it
    holds as texts are in memory. Values may be shared, and containers may hold themselves, as the pickle says.

    Raises:
        UserError: no such file; a damaged pickle, or one that asks for anything else.
    """
    file = MappedFile(path)
    value, _ = load_pickle(file.mmap or b"", str(path), constructors=python_and_numpy_constructors(file))
    return value
