"""GeoPixelD as published: `{train,test}/NAME.json` beside the iSAID patch `NAME.png`, and maybe `GeoPixelD.json` with the questions.

As `data_mix.py` of the official GeoPixel reads it. A file is `{id, img, gcg_description, polygons}`: a caption in which each object is
written `<p> tennis court-1 </p> [SEG]`, and for each [SEG] the polygons (rings of contour pixels, filled with their outline) of its
object. `GeoPixelD.json` is a list of `{image, polygons, conversations}`; its human's turn is the instruction. Where it is absent, the
instruction is `INSTRUCTION`, in words of our own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_pipeline.annotation import Annotation, Rejection, attempt, check_count, file_inside, read_json, text_field
from data_pipeline.schema import Tags
from data_pipeline.sources.source import Source
from data_pipeline.targets import ImageFile, Polygons
from segearth_r2_jax.errors import UserError

SPLITS = ("train", "test")
QUESTIONS = "GeoPixelD.json"
INSTRUCTION = "Describe this image in detail and mark each object that you mention with its mask."


@dataclasses.dataclass(frozen=True)
class FilePolygons:
    """Object `number` of the `polygons` of a GeoPixelD file, which is read again when the mask is made.

    The polygons follow the contours pixel by pixel: a whole data set of them is too much to keep.
    """

    path: Path
    number: int

    def rasterize(self, image: ImageFile, name: str) -> np.ndarray:
        """The mask uint8 [h, w]; UserError if the object's polygons are damaged."""
        polygons = _polygons(read_json(self.path, dict, "an object of gcg_description and polygons"), name)
        rings = polygons[self.number] if self.number < len(polygons) else None
        if not isinstance(rings, list):
            raise UserError(f"{name}: an object must be a list of polygons")
        return Polygons(tuple(rings), edges=True).rasterize(image, name)


def present(folder: Path) -> tuple[str, ...]:
    """The splits that `folder` holds; UserError if there is none."""
    found = tuple(split for split in SPLITS if (folder / split).is_dir())
    if not found:
        raise UserError(f"{folder}: holds neither train/ nor test/; expected the GeoPixelD layout (train/NAME.json, train/NAME.png)")
    return found


def read(folder: Path, split: str) -> Iterator[Annotation | Rejection]:
    """One annotation per file, in the order of their names. UserError where a split holds no file or GeoPixelD.json is damaged."""
    if split not in present(folder):
        raise UserError(f"{folder / split}: no such folder")
    files = sorted((folder / split).glob("*.json"))
    if not files:
        raise UserError(f"{folder / split}: holds no JSON file; expected the GeoPixelD layout (NAME.json beside NAME.png)")
    questions = _questions(folder / QUESTIONS) if (folder / QUESTIONS).is_file() else {}
    for file in files:
        yield attempt(str(file), functools.partial(_check, folder, split, file, questions))


def _check(folder: Path, split: str, file: Path, questions: Mapping[str, str]) -> Annotation:
    name = str(file)
    file_inside(file.parent, file.name, name, "file", "file")
    content = read_json(file, dict, "an object of gcg_description and polygons")
    targets = tuple(FilePolygons(file, number) for number in range(len(_polygons(content, name))))
    answer = text_field(content, "gcg_description", name, empty=False)
    check_count(answer, targets, name)
    # `img` is a path from the folder in which the authors worked; the image lies beside its annotation.
    image_name = PurePosixPath(text_field(content, "img", name, empty=False)).name
    if PurePosixPath(image_name).stem != file.stem:
        raise UserError(f"{name}: img is {image_name!r}, expected {file.stem}.png, the file's own name")
    return Annotation(
        name=name,
        record_id=file.stem,
        source=f"{split}/{file.name}",
        image_name=f"{split}/{image_name}",
        image_path=file_inside(folder / split, image_name, name, "img"),
        instruction=questions.get(f"{split}/{file.name}", INSTRUCTION),
        answer=answer,
        targets=targets,
        tags=Tags(reasoning="explicit"),
        also_from=(folder / QUESTIONS,) if (folder / QUESTIONS).is_file() else (),
    )


def _polygons(content: Mapping[str, Any], name: str) -> list[Any]:
    polygons = content.get("polygons")
    if not isinstance(polygons, list):
        raise UserError(f"{name}: polygons must be a list, it is {'missing' if polygons is None else type(polygons).__name__}")
    return polygons


def _questions(file: Path) -> dict[str, str]:
    """ "SPLIT/NAME.json" -> the question about it. One wrong entry makes the whole file doubtful: UserError."""
    found = {}
    for number, entry in enumerate(read_json(file, list, "a list of conversations")):
        name = f"{file}: entry {number}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{name}: expected an object of named fields, it is {type(entry).__name__}")
        turns = entry.get("conversations")
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], Mapping) or turns[0].get("from") != "human":
            raise UserError(f"{name}: conversations must be a list that begins with the turn of the human")
        path = PurePosixPath(text_field(entry, "polygons", name, empty=False))
        found[f"{path.parent.name}/{path.name}"] = text_field(turns[0], "value", name, empty=False).strip()
    return found


SOURCE = Source(
    name="geopixeld",
    title="GeoPixelD",
    home="https://huggingface.co/datasets/MBZUAI/GeoPixelD",
    licence="CC-BY-4.0",
    splits=SPLITS,
    present=present,
    read=read,
)
