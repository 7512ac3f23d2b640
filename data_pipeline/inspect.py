"""Makes a page that shows a data set: samples with masks and words, and how its records are distributed.

    python -m data_pipeline.inspect --shards DIR --output DIR [--split train] [--samples 48] [--seed 0]
    python -m data_pipeline.inspect --source NAME --input DIR --output DIR ...

The page is one file, `index.html`, that needs no network. From a larger set, records are drawn at random (`--scan` of them, the same
for the same seed): the page says how many were looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.annotation import Annotation, Rejection
from data_pipeline.distributions import Distributions
from data_pipeline.pages.folder import check_new_folder, whole_folder
from data_pipeline.pages.markup import write_page
from data_pipeline.pages.overview import Overview, overview_page
from data_pipeline.pages.pictures import make_picture
from data_pipeline.pages.samples import decoded, sample_card
from data_pipeline.schema import Record
from data_pipeline.shard_folder import ShardedRecords
from data_pipeline.sources.registry import SOURCES, get_source
from segearth_r2_jax.errors import UserError

PAGE = "index.html"
# With these, 200 samples stay under 15 MB.
_SIDE, _JPEG_BYTES = 440, 40_000
_SCAN = 5000


def inspect_shards(folder: str, split: str, output: Path, *, samples: int = 48, seed: int = 0, scan: int = _SCAN) -> Path:
    """Writes the page of one split of a folder of shards to the new folder `output`; returns the page's path.

    Raises UserError if the shards are damaged or `output` is not empty.
    """
    _check(output, samples, scan)
    records = ShardedRecords(folder, split)
    if not len(records):
        raise UserError(f"{folder}: the split {split!r} holds no record")
    numbers = drawn(len(records), scan, seed)
    shown = set(drawn(len(numbers), samples, seed + 1).tolist())
    distributions, cards = Distributions(), []
    for place, number in enumerate(with_progress(numbers.tolist())):
        record = records[number]
        distributions.add(record)
        if place in shown:
            cards.append(_card(record))
    overview = Overview(f"{Path(folder).name} · {split}", f"shards in {folder}", len(records), distributions, cards)
    return _write(output, overview)


def inspect_source(name: str, folder: Path, split: str, output: Path, *, samples: int = 48, seed: int = 0, scan: int = _SCAN) -> Path:
    """The same for a data set in its published layout; records that cannot be used are counted and listed on the page with the reason."""
    _check(output, samples, scan)
    source = get_source(name)
    present = source.present(folder)
    if split not in present:
        raise UserError(f"{folder}: has no split {split!r}; it has {', '.join(present)}")
    rows = list(source.read(folder, split))
    numbers = drawn(len(rows), scan, seed)
    distributions, cards, rejected = Distributions(), [], []
    # Which records can be used shows only when they are read: drawn in advance are the samples, replaced if they cannot.
    wanted = drawn(len(numbers), samples, seed + 1)
    shown, due = set(wanted.tolist()), 0
    for place, number in enumerate(with_progress(numbers.tolist())):
        due += place in shown
        row = rows[number]
        record = _loaded(row)
        if isinstance(record, Rejection):
            rejected.append(record)
            continue
        distributions.add(record)
        if due > len(cards):
            cards.append(_card(record))
    overview = Overview(f"{source.title} · {split}", f"{name} in {folder}", len(rows), distributions, cards, rejected)
    return _write(output, overview)


def _loaded(row: Annotation | Rejection) -> Record | Rejection:
    if isinstance(row, Rejection):
        return row
    try:
        return row.load()
    except UserError as error:
        return Rejection.from_error(row.name, error)


def _card(record: Record) -> Any:
    image, masks = decoded(record)
    return sample_card(record, make_picture(image, masks, _SIDE, _JPEG_BYTES))


def drawn(total: int, count: int, seed: int) -> np.ndarray:
    """`count` different numbers below `total` in ascending order, or all of them."""
    if count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def with_progress(numbers: Sequence[int]) -> Iterator[int]:
    """The numbers of records one by one, under a bar on a terminal and with a line now and then in a log."""
    terminal = sys.stderr.isatty()
    step = max(1, len(numbers) // 10)
    for done, number in enumerate(tqdm(numbers, unit="record", disable=not terminal), 1):
        yield number
        if not terminal and done % step == 0 and len(numbers) >= 1000:
            print(f"{done} of {len(numbers)} records", file=sys.stderr)


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
    parser.add_argument("--scan", type=int, default=_SCAN, metavar="N", help=f"records that are counted, at most (default: {_SCAN})")
    options = parser.parse_args(arguments)
    if (options.source is None) != (options.input is None):
        parser.error("--source and --input belong together")
    how = {"samples": options.samples, "seed": options.seed, "scan": options.scan}
    try:
        if options.shards is not None:
            page = inspect_shards(options.shards, options.split, options.output, **how)
        else:
            page = inspect_source(options.source, options.input, options.split, options.output, **how)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(f"{page}: open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
