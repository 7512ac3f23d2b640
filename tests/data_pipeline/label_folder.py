"""Small folders of pictures with class, instance and part rasters, drawn here: what `compose` reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {
    "classes": [
        {"id": 1, "name": "background", "kind": "other", "colour": [0, 0, 0]},
        {"id": 2, "name": "building", "kind": "thing", "colour": [255, 0, 0]},
        {"id": 3, "name": "road", "kind": "stuff", "colour": [120, 120, 120]},
        {"id": 4, "name": "Farm_land", "kind": "stuff", "colour": [0, 255, 0]},
        {"id": 5, "name": "kiosk", "kind": "thing", "colour": [0, 0, 255]},
        {"id": 6, "name": "swimming pool", "kind": "thing", "colour": [0, 255, 255]},
        {"id": 7, "name": "car", "kind": "thing", "colour": [255, 255, 0]},  # none is drawn
    ],
    "ignore": [0],
}


def draw_labels(seed: int, height: int = 120, width: int = 160) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class numbers, instance numbers and part numbers (1 roof, 2 chimney), each uint8 [h, w]."""
    rng = np.random.default_rng(seed)
    classes, instances, parts = (np.zeros((height, width), np.uint8) for _ in range(3))
    classes[:] = 1
    classes[:, : width // 6] = 4
    classes[height // 2 : height // 2 + 8, :] = 3
    number = 0
    for kind, count in ((6, 1), (2, 3), (5, 2)):
        for _ in range(count):
            number += 1
            h, w = (int(v) for v in rng.integers(12, 30, 2))
            top, left = int(rng.integers(0, height - h)), int(rng.integers(width // 6, width - w))
            box = (slice(top, top + h), slice(left, left + w))
            classes[box], instances[box], parts[box] = kind, number, 0
            if kind == 2:
                parts[top + 2 : top + h - 2, left + 2 : left + w // 2] = 1
                parts[top + 2 : top + h - 2, left + w // 2 : left + w - 2] = 2
    return classes, instances, parts


def write_folder(folder: Path, count: int = 6, *, colours: bool = False, parts: bool = False) -> Path:
    """`folder` with images/, labels/, instances/, parts/ and classes.json."""
    table = json.loads(json.dumps(CLASSES))
    if parts:
        table["parts"] = [{"id": 1, "name": "roof"}, {"id": 2, "name": "chimney"}]
    for name in ("images", "labels", "instances", "parts"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps(table))
    for index in range(count):
        classes, instances, part = draw_labels(index)
        rng = np.random.default_rng(index)
        picture = rng.integers(1, 255, (*classes.shape, 3), np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"tile_{index}.{'jpg' if index % 2 else 'png'}")
        lut = np.zeros((256, 3), np.uint8)
        for row in CLASSES["classes"]:
            lut[row["id"]] = row["colour"]
        Image.fromarray(lut[classes] if colours else classes).save(folder / "labels" / f"tile_{index}.{'tif' if index == 2 else 'png'}")
        Image.fromarray(instances).save(folder / "instances" / f"tile_{index}.png")
        Image.fromarray(part).save(folder / "parts" / f"tile_{index}.png")
    return folder


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    """A command line of `data_pipeline.compose` for a folder of `write_folder`."""
    files = ["--images", folder / "images", "--labels", folder / "labels", "--classes", folder / "classes.json", "--output", output]
    return [str(part) for part in files] + ["--workers", "0", *more]


def rows_of(output: Path, split: str) -> list[dict]:
    """All rows of a split of a composed set, each once."""
    rows = {}
    for path in sorted((output / split / "annotations").glob("*.json")):
        rows |= {row["id"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    return list(rows.values())
