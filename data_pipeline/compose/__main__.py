"""Makes instructions, answers and masks from ordinary labels: `python -m data_pipeline.compose --images DIR --labels DIR --classes loveda
--output DIR`.

Reads class rasters, with instance and part rasters if there are some, or a COCO instance file. Writes the layout of LaSeRS.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.command_line import run_command
from data_pipeline.compose import rewriting
from data_pipeline.compose.build import Settings, compose
from data_pipeline.compose.classes import PRESETS, load_classes
from data_pipeline.compose.coco import CocoLabels
from data_pipeline.compose.labels import RasterLabels
from data_pipeline.compose.pairing import find_images, raster_files
from segearth_r2_jax.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.compose", description="Makes referring data from ordinary labels.")
    files = parser.add_argument_group("files")
    files.add_argument("--images", required=True, type=Path, metavar="DIR", help="the pictures, also in folders below")
    files.add_argument("--labels", type=Path, metavar="DIR", help="class rasters (PNG, TIFF), each under its picture's name")
    files.add_argument("--label-ending", default="", metavar="TEXT", help="what follows the picture's name in that of its labels: _label")
    files.add_argument("--classes", metavar="FILE|PRESET", help=f"what the values mean: a JSON file or {', '.join(PRESETS)}")
    files.add_argument("--instances", type=Path, metavar="DIR", help="instance rasters: a number for each thing")
    files.add_argument("--parts", type=Path, metavar="DIR", help="part rasters: the numbers of `parts` in --classes")
    files.add_argument("--coco", type=Path, metavar="FILE", help="COCO instances, in place of --labels")
    files.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new or empty folder")
    files.add_argument("--licence", default="", metavar="TEXT", help="the licence of pictures and labels, written down in compose.json")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--records", type=int, default=8, metavar="N", help="instructions per picture, at most (default 8)")
    rows.add_argument("--test-share", type=float, default=0.1, metavar="X", help="share of the pictures that are test (default 0.1)")
    rows.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other instructions (default 0)")
    rows.add_argument("--workers", type=int, metavar="N", help="processes (default: one per processor, 0: none besides this one)")
    rewriting.add_arguments(parser.add_argument_group("rewriting", "off unless an endpoint is given"))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    options = build_parser().parse_args(arguments)
    return run_command(lambda: _run(options), "no data set was written")


def _run(options: argparse.Namespace) -> None:
    settings = Settings(options.records, options.test_share, options.seed)
    workers = _workers(options.workers)
    images, labels = _read_input(options)
    rewriter = rewriting.from_options(options, tuple(labels.entries))
    summary = compose(images, labels, options.output, settings, _notes(options), workers, rewriter)
    told = []
    for split, word in (("train", "training"), ("test", "test")):
        pictures = summary["pictures"][split]
        told.append(f"{sum(summary['rows'][split].values())} {word} rows of {pictures} picture{'' if pictures == 1 else 's'}")
    print(f"{options.output}: {', '.join(told)}")
    for key, said in (("partly_labelled", "pictures labelled in part"), ("without_rows", "pictures that gave no row")):
        if summary[key]:
            print(f"{said}: {len(summary[key])}; compose.json names them")
    if "rewriting" in summary:
        print(rewriting.told(summary["rewriting"]))


def _workers(given: int | None) -> int:
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if given < 0:
        raise UserError(f"--workers {given}: expected zero or more")
    return given


def _read_input(options: argparse.Namespace) -> tuple[dict[str, Path], RasterLabels | CocoLabels]:
    if (options.labels is None) == (options.coco is None):
        raise UserError("--labels, --coco: expected one of them")
    images = find_images(options.images)
    if options.coco is not None:
        for option in ("instances", "parts", "label_ending"):
            if getattr(options, option):
                raise UserError(f"--{option.replace('_', '-')}: goes with --labels; a COCO file holds instances and parts itself")
        coco = CocoLabels(options.coco, None if options.classes is None else load_classes(options.classes))
        missing = [name for name in coco.names if name not in images]
        if missing:
            raise UserError(f"{options.coco}: names the picture {missing[0]!r}, which {options.images} does not hold")
        unlabelled = [name for name in images if name not in coco.names]
        if unlabelled:
            raise UserError(f"{options.coco}: does not name the picture {unlabelled[0]!r} of {options.images}")
        return images, coco
    if options.classes is None:
        raise UserError(f"--classes: what do the values of the labels mean? Expected a JSON file or one of {', '.join(PRESETS)}")
    table = load_classes(options.classes)
    if (options.parts is None) != (not table.parts):
        raise UserError('--parts: expected together with "parts" in --classes')
    return images, RasterLabels(table, raster_files(images, options.labels, options.instances, options.parts, options.label_ending))


def _notes(options: argparse.Namespace) -> Mapping[str, Any]:
    given = {name: getattr(options, name) for name in ("images", "labels", "instances", "parts", "coco", "classes")}
    return {"sources": {name: str(value) for name, value in given.items() if value is not None}, "licence": options.licence}


if __name__ == "__main__":
    sys.exit(main())
