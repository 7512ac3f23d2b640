"""Which label files belong to which picture, and which pictures are training and which test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_pipeline.compose.labels import RasterFiles
from data_pipeline.compose.rasters import LABEL_SUFFIXES
from segearth_r2_jax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def find_images(folder: Path) -> dict[str, Path]:
    """The pictures in `folder` and below by their names, paths relative to it, sorted.

    Raises UserError if there are none, or if two differ only in their ending.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    found: dict[str, Path] = {}
    stems: dict[str, str] = {}
    for path in sorted(_files(folder)):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in IMAGE_SUFFIXES:
            stem = _stem(name)
            if stem in stems:
                raise UserError(f"{folder}: {stems[stem]} and {name} differ only in their ending; expected one picture of a name")
            stems[stem] = name
            found[name] = path
    if not found:
        raise UserError(f"--images {folder}: holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    return found


def find_labels(names: Iterable[str], folder: Path, option: str, ending: str = "") -> dict[str, Path]:
    """The label file of each picture: the same path below `folder`, the name's stem followed by `ending`, as PNG or TIFF.

    Raises UserError for the first picture that has none or several.
    """
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: no such folder")
    files: dict[str, list[Path]] = {}
    for path in _files(folder):
        if path.suffix.lower() in LABEL_SUFFIXES:
            files.setdefault(_stem(path.relative_to(folder).as_posix()), []).append(path)
    found = {}
    for name in names:
        candidates = files.get(_stem(name) + ending, [])
        if len(candidates) != 1:
            wanted = f"{_stem(name)}{ending}.png or .tif"
            raise UserError(f"{option} {folder}: {'two files' if candidates else 'no file'} for the picture {name}; expected {wanted}")
        found[name] = candidates[0]
    return found


def raster_files(
    names: Iterable[str], labels: Path, instances: Path | None = None, parts: Path | None = None, ending: str = ""
) -> dict[str, RasterFiles]:
    """The label rasters of each picture."""
    names = list(names)
    classes = find_labels(names, labels, "--labels", ending)
    found = {name: [classes[name], None, None] for name in names}
    for place, folder, option in ((1, instances, "--instances"), (2, parts, "--parts")):
        if folder is not None:
            for name, path in find_labels(names, folder, option, ending).items():
                found[name][place] = path
    return {name: RasterFiles(*paths) for name, paths in found.items()}


def split_by_image(digests: Mapping[str, str], test_share: float, seed: int) -> dict[str, str]:
    """ "train" or "test" for each picture by its name, from the SHA-256 of its file: copies of a picture are always on the same side.

    The test set has the share of the different pictures that was asked for, to the nearest one, and where both sides are wanted and there
    are two pictures, neither is empty.
    """
    order = sorted(set(digests.values()), key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    count = round(test_share * len(order))
    if 0 < test_share < 1 and len(order) > 1:
        count = min(max(count, 1), len(order) - 1)
    chosen = set(order[:count])
    return {name: "test" if digest in chosen else "train" for name, digest in digests.items()}


def _files(folder: Path) -> Iterable[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]
