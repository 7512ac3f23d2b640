"""A small data set in the LaSeRS layout: sixteen rows about four images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from segearth_r2_jax.raster.rle import encode

ROWS = 16
_SIZES = ((96, 128), (128, 96), (64, 64), (200, 150))  # height, width; one image for four rows


def write_tanks(folder: Path) -> None:
    """ROWS training rows, number modulo four being the number of their masks, every third one implicit, every other one long."""
    (folder / "train/images").mkdir(parents=True)
    (folder / "train/annotations").mkdir()
    for number, (height, width) in enumerate(_SIZES):
        image = np.random.default_rng(number).integers(60, 120, (height, width, 3), np.uint8)
        Image.fromarray(image).save(folder / f"train/images/{number}.png")
    rows = [_row(number) for number in range(ROWS)]
    (folder / "train/annotations/train_data.json").write_text(json.dumps(rows))


def _row(number: int) -> dict:
    masks = np.zeros((number % 4, *_SIZES[number // 4]), np.uint8)
    for place, mask in enumerate(masks):
        mask[4 + 20 * place : 20 + 20 * place, 5 : 20 + number] = 1
    phrases = [f"<p>tank {place}</p>[SEG]" for place in range(len(masks))]
    return {
        "id": f"row{number}",
        "image_name": f"{number // 4}.png",
        "description": f"the tanks of question {number}",
        "answer": f"They are {', '.join(phrases)}." if phrases else "There is none.",
        "mask": [encode(mask) for mask in masks],
        "tags": {
            "granularity": "instance",
            "multiplicity": "multi" if len(masks) > 1 else "single",
            "reasoning": "explicit" if number % 3 else "implicit",
            "language": "long" if number % 2 else "short",
            "category": "storage tank",
        },
    }


def change_rows(folder: Path, change) -> None:
    """Applies `change(number, row)` to the training rows of a data set, in place."""
    path = folder / "train/annotations/train_data.json"
    rows = json.loads(path.read_text())
    for number, row in enumerate(rows):
        change(number, row)
    path.write_text(json.dumps(rows))
