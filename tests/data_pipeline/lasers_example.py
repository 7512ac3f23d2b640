"""A data set of a few rows in the LaSeRS layout: images of awkward shapes, zero to three masks per answer."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from segearth_r2_jax.raster.rle import encode

SHAPES = [(40, 64), (64, 40), (48, 48), (1, 30), (70, 90)]


def png(image: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


def row_masks(number: int) -> np.ndarray:
    """The masks of row `number`: uint8 [number % 4, h, w]."""
    h, w = SHAPES[number % len(SHAPES)]
    return (np.random.default_rng(number).random((number % 4, h, w)) < 0.3).astype(np.uint8)


def annotation(number: int) -> dict:
    masks = row_masks(number)
    answer = "The result is " + ", ".join(["[SEG]"] * len(masks)) + "." if len(masks) else "There is none."
    return {
        "id": f"row{number}",
        "image_name": f"area/{number % len(SHAPES)}.{'jpg' if number % 2 else 'png'}",
        "description": f"the {number} large tanks at the lake",
        "answer": answer,
        "mask": [encode(mask) for mask in masks],
    }


def write_lasers(folder: Path, rows: int, split: str = "train", file: str = "train_ann.json") -> Path:
    (folder / split / "annotations").mkdir(parents=True, exist_ok=True)
    images = folder / split / "images" / "area"
    images.mkdir(parents=True, exist_ok=True)
    for number, (h, w) in enumerate(SHAPES):
        # No image is in two splits.
        image = np.random.default_rng([number, ord(split[1])]).integers(0, 256, (h, w, 3), np.uint8)
        (images / f"{number}.png").write_bytes(png(image))
        (images / f"{number}.jpg").write_bytes(png(image, "JPEG"))
    (folder / split / "annotations" / file).write_text(json.dumps([annotation(number) for number in range(rows)]))
    return folder
