"""Makes a page that shows a data set: samples with masks and words, and how its records are distributed.

    python -m data_pipeline.inspect --shards DIR --output DIR [--split train] [--samples 48] [--seed 0]
    python -m data_pipeline.inspect --source NAME --input DIR --output DIR ...

The page is one file, `index.html`, that needs no network. From a larger set, records are drawn at random (`--scan` of them, the same
for the same seed): the page says how many were looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.annotation import Annotation, Rejection
from data_pipeline.atomic import check_new_folder, whole_folder
from data_pipeline.command_line import run_command
from data_pipeline.distributions import Distributions
from data_pipeline.pages.markup import Markup, write_page
from data_pipeline.pages.overview import Overview, overview_page
from data_pipeline.pages.pictures import make_jpeg, make_picture
from data_pipeline.pages.samples import sample_card
from data_pipeline.progress import Progress
from data_pipeline.schema import Record
from data_pipeline.shard_folder import ShardedRecords
from data_pipeline.sources.registry import SOURCES, get_source
from data_pipeline.validation import read_rows
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import decode_image
from segearth_r2_jax.raster.rle import decode

PAGE = "index.html"
# With these, 200 samples stay under 15 MB.
SIDE, JPEG_BYTES = 440, 40_000
SCAN = 5000


def inspect_shards(folder: str, split: str, output: Path, *, samples: int = 48, seed: int = 0, scan: int = SCAN) -> Path:
    """Writes the page of one split of a folder of shards to the new folder `output`; returns the page's path.

    Args:
      samples: how many records are shown; scan: how many are counted, at most. Both are drawn at random by `seed`.
    Raises UserError if the shards are damaged or `output` is not empty.
    """
    _check(output, samples, scan)
    records = ShardedRecords(folder, split)
    if not len(records):
        raise UserError(f"{folder}: the split {split!r} holds no record")
    looked_at = _look(records.__getitem__, len(records), samples, seed, scan)
    title = f"{Path(folder).absolute().name} · {split}"
    return _write(output, Overview(title, f"Shards in {folder}", len(records), *looked_at))


def inspect_source(name: str, folder: Path, split: str, output: Path, *, samples: int = 48, seed: int = 0, scan: int = SCAN) -> Path:
    """The same for a data set in its published layout; the page lists the records that a build would leave out, with the reasons."""
    _check(output, samples, scan)
    source = get_source(name)
    present = source.present(folder)
    if split not in present:
        raise UserError(f"{folder}: has no split {split!r}; it has {', '.join(present)}")
    rows = list(read_rows(source, folder, split))
    looked_at = _look(lambda number: _loaded(rows[number]), len(rows), samples, seed, scan)
    return _write(output, Overview(f"{source.title} · {split}", f"{name} in {folder}", len(rows), *looked_at))


def _look(
    load: Callable[[int], Record | Rejection], total: int, samples: int, seed: int, scan: int
) -> tuple[Distributions, list[Markup], list[Rejection]]:
    """Distributions, cards of samples and rejections of `scan` of `total` records."""
    numbers = drawn(total, scan, seed)
    # A sample that cannot be used is replaced by the next record that can.
    chosen, due = set(drawn(len(numbers), samples, seed + 1).tolist()), 0
    distributions, cards, rejected = Distributions(), [], []
    with Progress("looked at", len(numbers)) as progress:
        for place, number in enumerate(numbers.tolist()):
            due += place in chosen
            record = load(number)
            if isinstance(record, Rejection):
                rejected.append(record)
            else:
                distributions.add(record)
                if due > len(cards):
                    cards.append(_card(record))
            progress.add(1)
    # Neighbours often share an image: mixed, the first samples that are seen differ.
    mixed = np.random.default_rng(seed).permutation(len(cards)).tolist()
    return distributions, [cards[place] for place in mixed], rejected


def _card(record: Record) -> Markup:
    name = f"{record.source}: row {record.record_id!r}"
    image = decode_image(record.image_bytes, f"{name}: image {record.image_name}")
    masks = [decode(mask, f"{name}: mask {number}") for number, mask in enumerate(record.masks or ())]
    return sample_card(record, make_picture(make_jpeg(image, SIDE, JPEG_BYTES), masks, SIDE))


def _loaded(row: Annotation | Rejection) -> Record | Rejection:
    if isinstance(row, Rejection):
        return row
    try:
        return row.load()
    except UserError as error:
        return Rejection.from_error(row.name, error)


def drawn(total: int, count: int, seed: int) -> np.ndarray:
    """`count` different numbers below `total` in ascending order, or all of them: int [count]."""
    if count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def _check(output: Path, samples: int, scan: int) -> None:
    if samples < 0 or scan < 1:
        raise UserError("--samples must be at least 0 and --scan at least 1")
    check_new_folder(output)


def _write(output: Path, overview: Overview) -> Path:
    with whole_folder(output) as folder:
        write_page(folder / PAGE, overview_page(overview))
    return output / PAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.inspect", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shards", metavar="DIR", help="a folder of shards, here or in cloud storage (gs://...)")
    what.add_argument("--source", choices=sorted(SOURCES), help="the layout of the data set in --input")
    parser.add_argument("--input", type=Path, metavar="DIR", help="the data set's folder, with --source")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder for the page")
    parser.add_argument("--split", default="train", metavar="NAME", help="which split (default: train)")
    parser.add_argument("--samples", type=int, default=48, metavar="N", help="records that are shown (default: 48)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed shows other records (default: 0)")
    parser.add_argument("--scan", type=int, default=SCAN, metavar="N", help=f"records that are counted, at most (default: {SCAN})")
    options = parser.parse_args(arguments)
    if (options.source is None) != (options.input is None):
        parser.error("--source and --input belong together")
    how = {"samples": options.samples, "seed": options.seed, "scan": options.scan}

    def run() -> None:
        if options.shards is not None:
            page = inspect_shards(options.shards, options.split, options.output, **how)
        else:
            page = inspect_source(options.source, options.input, options.split, options.output, **how)
        print(f"{page}: open it in a browser")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
