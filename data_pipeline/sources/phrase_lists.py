"""The layout that RefSegRS and RISBench share: `output_phrase_SPLIT.txt`, one "IMAGE phrase" per line, beside a folder of masks."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.annotation import Annotation, Rejection, attempt, file_inside, read_lines
from data_pipeline.schema import Tags
from data_pipeline.sources.answers import masks_answer
from data_pipeline.targets import MaskImage
from segearth_r2_jax.errors import UserError

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class PhraseLists:
    """A data set in this layout: its folders of images and masks, what is added to a line's first word to make a file name, its tags."""

    images: str
    masks: str
    suffix: str
    tags: Tags

    def present(self, folder: Path) -> tuple[str, ...]:
        """The splits that `folder` holds; UserError if there is none or a folder is missing."""
        found = tuple(split for split in SPLITS if _list_file(folder, split).is_file())
        if not found:
            raise UserError(f"{folder}: holds no output_phrase_train.txt, output_phrase_val.txt or output_phrase_test.txt")
        for part in (self.images, self.masks):
            if not (folder / part).is_dir():
                raise UserError(f"{folder / part}: no such folder; expected {self.images}/ and {self.masks}/ beside output_phrase_*.txt")
        return found

    def read(self, folder: Path, split: str) -> Iterator[Annotation | Rejection]:
        """One annotation per line, in the file's order. Lines that name the same image get ids of their own: IMAGE, IMAGE/1, ..."""
        self.present(folder)
        file = _list_file(folder, split)
        seen: collections.Counter[str] = collections.Counter()
        empty = True
        for name, line in read_lines(file):
            empty = False
            yield attempt(name, functools.partial(self._check, folder, file, line, name, seen))
        if empty:
            raise UserError(f"{file}: holds no line")

    def _check(self, folder: Path, file: Path, line: bytes, name: str, seen: collections.Counter[str]) -> Annotation:
        try:
            image, *phrase = line.decode().split(maxsplit=1)
        except UnicodeDecodeError:
            raise UserError(f"{name}: is not UTF-8 text") from None
        if not phrase:
            raise UserError(f"{name}: expected an image's name, a space and a phrase, it is {image!r:.60}")
        stem = image.removesuffix(".png")
        file_name = image + self.suffix
        image_path = file_inside(folder / self.images, file_name, name)
        mask_path = file_inside(folder / self.masks, file_name, name, "image_name", "mask")
        number = seen[stem]
        seen[stem] += 1
        return Annotation(
            name=name,
            record_id=f"{stem}/{number}" if number else stem,
            source=file.name,
            image_name=file_name,
            image_path=image_path,
            instruction=phrase[0],
            answer=masks_answer(1),
            targets=(MaskImage(mask_path),),
            tags=self.tags,
        )


def _list_file(folder: Path, split: str) -> Path:
    return folder / f"output_phrase_{split}.txt"
