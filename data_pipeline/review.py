"""Makes a page on which a person accepts or rejects the rows of a data set in the LaSeRS layout.

    python -m data_pipeline.review --input DIR --output PAGE_DIR [--split train] [--samples N] [--seed S]

The page, `index.html` with its pictures in `images/` beside it, is static and sends nothing anywhere. Its button gives `review.json`,
which belongs into DIR: `build_shards` leaves the rejected rows out and lists them in its report.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.annotation import Annotation, Rejection
from data_pipeline.atomic import check_new_folder, whole_folder
from data_pipeline.command_line import run_command
from data_pipeline.inspect import PAGE, drawn
from data_pipeline.pages.markup import write_page
from data_pipeline.pages.pictures import Jpeg, make_jpeg, make_picture
from data_pipeline.pages.review_page import review_page, review_row
from data_pipeline.progress import Progress
from data_pipeline.review_decisions import FILE_NAME, load_decisions
from data_pipeline.sources import lasers
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import decode_image
from segearth_r2_jax.raster.rle import decode

_IMAGES = "images"
# Large enough to judge the edge of a mask, small enough for thousands of rows.
_SIDE, _JPEG_BYTES = 960, 220_000


def write_review(folder: Path, output: Path, *, split: str = "train", samples: int | None = None, seed: int = 0) -> int:
    """Writes the page of a split of `folder` to the new folder `output`; returns how many rows it shows.

    Args:
      samples: rows to show, drawn at random but in their order; None for all. A row that stands in several files is shown once.
      seed: fixes which are drawn.
    A `review.json` in `folder` is what the page starts with. Raises UserError if a whole file is damaged, no row can be shown, or `output`
    is not empty; single rows that cannot be used are listed on the page.
    """
    check_new_folder(output)
    if samples is not None and samples < 1:
        raise UserError("--samples must be at least 1")
    decisions = load_decisions(folder / FILE_NAME) if (folder / FILE_NAME).is_file() else {}
    rows = _once(lasers.read(folder, split))
    shown: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    with whole_folder(output) as partial:
        writer = _RowWriter(partial)
        numbers = drawn(len(rows), samples or len(rows), seed)
        with Progress("drawn", len(numbers), "rows") as progress:
            for row in (rows[number] for number in numbers.tolist()):
                if isinstance(row, Rejection):
                    rejected.append(row)
                else:
                    try:
                        shown.append(writer.write(row))
                    except UserError as error:
                        rejected.append(Rejection.from_error(row.name, error))
                progress.add(1)
        if not shown:
            raise UserError(f"{folder}: no row of the split {split!r} can be used; the first: {rejected[0]}")
        what = f"{len(shown):,} rows" if samples is None else f"{len(shown):,} of {len(rows):,} rows, drawn at random"
        page = review_page(f"Review of {folder.absolute().name} · {split}", what, shown, decisions, rejected)
        write_page(partial / PAGE, page)
    return len(shown)


def _once(rows: Iterable[Annotation | Rejection]) -> list[Annotation | Rejection]:
    """Rows that differ, with the tags of all their copies: in LaSeRS a question stands in the test file of each dimension."""
    found: dict[tuple, Annotation | Rejection] = {}
    for row in rows:
        if isinstance(row, Rejection):
            found.setdefault((row.name, row.reason), row)
            continue
        key = (row.record_id, row.image_name, row.instruction, row.answer)
        first = found.setdefault(key, row)
        known = {name: value for name, value in dataclasses.asdict(first.tags).items() if value is not None}
        found[key] = dataclasses.replace(first, tags=dataclasses.replace(row.tags, **known))
    return list(found.values())


class _RowWriter:
    """Writes the pictures of rows. An image is decoded once for the rows on it that follow each other, and written once for all."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._rows = 0
        self._opened: tuple[Path, bytes, tuple[int, int], Jpeg] | None = None
        self._written: dict[Path, str] = {}
        (folder / _IMAGES).mkdir()

    def write(self, row: Annotation) -> dict[str, Any]:
        """The row as the page takes it; UserError naming the row if its image or a mask is damaged."""
        if self._opened is None or self._opened[0] != row.image_path:
            content = row.read_image_bytes()
            image = decode_image(content, f"{row.name}: image {row.image_path}")
            self._opened = row.image_path, content, image.shape[:2], make_jpeg(image, _SIDE, _JPEG_BYTES)
        _, content, (height, width), jpeg = self._opened
        record = row.record(content, height, width)
        masks = [decode(mask, f"{row.name}: mask {place}") for place, mask in enumerate(record.masks or ())]
        picture = make_picture(jpeg, masks, _SIDE)
        if row.image_path not in self._written:
            self._written[row.image_path] = f"{_IMAGES}/{len(self._written):06d}.jpg"
            (self._folder / self._written[row.image_path]).write_bytes(jpeg.content)
        layers = [f"{_IMAGES}/{self._rows:06d}-{place}.png" for place in range(len(picture.layers))]
        for path, layer in zip(layers, picture.layers, strict=True):
            (self._folder / path).write_bytes(layer.png)
        self._rows += 1
        return review_row(record, picture, self._written[row.image_path], layers)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.review", description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="a data set in the LaSeRS layout")
    parser.add_argument("--output", required=True, type=Path, metavar="PAGE_DIR", help="a new folder for the page")
    parser.add_argument("--split", default="train", choices=lasers.SPLITS, help="which split (default: train)")
    parser.add_argument("--samples", type=int, metavar="N", help="rows to show, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed draws other rows (default: 0)")
    options = parser.parse_args(arguments)

    def run() -> None:
        count = write_review(options.input, options.output, split=options.split, samples=options.samples, seed=options.seed)
        print(f"{options.output / PAGE}: {count} rows; open it in a browser")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
