"""What the tests of the readers share: small pictures, and what became of each row of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.annotation import Annotation, Rejection, accepted
from data_pipeline.schema import Record
from data_pipeline.sources.source import Source
from segearth_r2_jax.raster.rle import decode

HEIGHT, WIDTH = 30, 40


def picture(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Writes a colour picture whose pixels follow from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(path.name.encode())).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def blob(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask uint8 [height, width] with some rectangle of ones."""
    top, left = np.random.default_rng(seed).integers(0, 15, 2)
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + 9, left : left + 12] = 1
    return mask


def mask_picture(path: Path, mask: np.ndarray, value: int = 255) -> Path:
    """Writes a mask as a picture of one band."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask * np.uint8(value)).save(path)
    return path


def annotations(source: Source, folder: Path, split: str) -> list[Annotation]:
    """All rows of a split; the first rejected one is an error."""
    return list(accepted(source.read(folder, split)))


def reasons(source: Source, folder: Path, split: str) -> list[str]:
    """What is wrong with each rejected row of a split, and with each row that cannot be loaded, without the folder's name."""
    found = []
    for row in source.read(folder, split):
        if isinstance(row, Rejection):
            found.append(str(row).replace(f"{folder}/", ""))
            assert "\n" not in found[-1]
    return found


def loaded(row: Annotation) -> tuple[Record, list[np.ndarray]]:
    """The record, which survives a shard, and its masks."""
    record = row.load()
    assert Record.from_example(record.to_example(), "r") == record
    return record, [decode(mask) for mask in record.masks or ()]
