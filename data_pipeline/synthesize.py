"""Draws a set of scenes in the layout of LaSeRS: `python -m data_pipeline.synthesize --output DIR --train N --test N --size PX --seed S`.

Writes `train/images`, `train/annotations/train_data.json`, `test/images` and the nine files of `test/annotations`; in the full world also
`test/annotations/test_empty.json`, which asks for what the pictures do not show.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_pipeline.atomic import whole_folder
from data_pipeline.command_line import run_command
from data_pipeline.grammar.facts import Facts
from data_pipeline.grammar.lexicon import DRAWN_CATEGORIES, entries_of
from data_pipeline.grammar.records import (
    CELLS,
    EMPTY_FILE,
    TEST_FILES,
    TEST_SHARES,
    TRAIN_SHARES,
    Instruction,
    make_empty_instruction,
    make_instructions,
)
from data_pipeline.synthetic.scene import WORLDS, draw_scene
from segearth_r2_jax.errors import UserError

# A change of the drawing or of the words that changes the sets gets a new number.
WORLD_VERSION = 1
SUMMARY = "synthetic.json"
SPLITS = ("train", "test")
FORMATS = ("png", "jpg")
MIN_SIZE, MAX_SIZE = 64, 8192
MAX_EXTENT = 4096  # metres from edge to edge
# Level 2 of zlib: four times faster than the default and no larger on these pictures.
_PNG_LEVEL = 2
# What drawing takes at its peak for each pixel of a picture, and in any case: decides how many processes fit into the memory.
_BYTES_PER_PIXEL, _BYTES_PER_PROCESS = 75, 120e6
# The test files that hold a record, and the record.
_Row = tuple[tuple[str, ...], dict[str, Any]]
# Where no terminal shows a bar, a line is printed this often.
_LOG_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class WorldSettings:
    """What decides a drawn set, byte for byte."""

    train: int
    test: int
    size: int
    seed: int
    records: int = 4
    metres_per_pixel: float | None = None
    world: str = "full"
    format: str = "png"
    jpeg_quality: int = 92

    def __post_init__(self):
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise UserError(f"--size {self.size}: expected {MIN_SIZE} to {MAX_SIZE} pixels")
        for name in ("train", "test", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)}: expected zero or more")
        if self.train + self.test == 0:
            raise UserError("--train 0 --test 0: expected at least one scene")
        if self.records < 1:
            raise UserError(f"--records {self.records}: expected one or more")
        if self.metres_per_pixel is not None and not 0.05 <= self.metres_per_pixel <= 10:
            raise UserError(f"--metres-per-pixel {self.metres_per_pixel}: expected 0.05 to 10")
        if self.metres_per_pixel is not None and self.size * self.metres_per_pixel > MAX_EXTENT:
            largest = MAX_EXTENT / self.size
            raise UserError(f"--metres-per-pixel {self.metres_per_pixel}: expected {largest:.3g} or less at --size {self.size}")
        for name, known in (("world", WORLDS), ("format", FORMATS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)}: expected one of {', '.join(known)}")
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"--jpeg-quality {self.jpeg_quality}: expected 1 to 100")

    @property
    def test_files(self) -> tuple[str, ...]:
        """The annotation files of the test split, without their ending."""
        return TEST_FILES if self.world == "simple" else (*TEST_FILES, EMPTY_FILE)


def synthesize(settings: WorldSettings, output: str | os.PathLike[str], workers: int | None = None, progress: bool = True) -> bool:
    """Writes the set to the folder `output`, which appears when it is complete; False if the same set is already there.

    `workers` processes draw (None: one per processor for larger sets, 0: this one alone); the files are the same for any number.
    Raises UserError if `output` holds anything else.
    """
    output = Path(output).absolute()
    if _already_there(settings, output):
        return False
    with whole_folder(output) as partial:
        for split in SPLITS:
            (partial / split / "images").mkdir(parents=True)
            (partial / split / "annotations").mkdir()
        _write_scenes(settings, partial, _worker_count(settings, workers), progress)
    return True


def _already_there(settings: WorldSettings, output: Path) -> bool:
    if not output.exists():
        return False
    if not output.is_dir():
        raise UserError(f"{output}: is a file; expected a new or empty folder")
    if not any(output.iterdir()):
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads((output / SUMMARY).read_text(encoding="utf-8"))["settings"] == _identity(settings):
            return True
    raise UserError(f"{output}: is not empty and not the set asked for; expected a new or empty folder")


def _identity(settings: WorldSettings) -> dict[str, Any]:
    return {"world_version": WORLD_VERSION, **dataclasses.asdict(settings)}


def _worker_count(settings: WorldSettings, workers: int | None) -> int:
    if workers is not None:
        if workers < 0:
            raise UserError(f"--workers {workers}: expected zero or more")
        return workers
    scenes = (settings.train + settings.test) * (settings.size / 256) ** 2
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Below about four seconds of drawing, starting processes costs more than it saves.
    if scenes <= 160:
        return 0
    workers = min(processors, settings.train + settings.test, _fitting_processes(settings.size))
    return workers if workers > 1 else 0


def _fitting_processes(size: int) -> int:
    """How many processes that draw pictures of `size` pixels the machine's memory holds; at least one."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 if size > 2048 else 64
    return max(1, int(0.8 * memory / (_BYTES_PER_PROCESS + _BYTES_PER_PIXEL * size**2)))


def _write_scenes(settings: WorldSettings, folder: Path, workers: int, progress: bool) -> None:
    files: dict[str, list[dict[str, Any]]] = {"train_data": [], **{name: [] for name in settings.test_files}}
    counts: dict[str, int] = {}
    jobs = [(settings, str(folder), split, index) for split in SPLITS for index in range(getattr(settings, split))]
    terminal = sys.stderr.isatty()
    told = time.monotonic()
    bar = tqdm(total=len(jobs), desc="drawing", unit=" scenes", disable=not (progress and terminal))
    with bar, _mapped(workers, jobs) as results:
        for done, ((_, _, split, _), made) in enumerate(zip(jobs, results, strict=True), 1):
            for tests, record in made:
                for name in ("train_data",) if split == "train" else tests:
                    files[name].append(record)
                for name in tests:
                    key = f"{split} {name.removeprefix('test_')}"
                    counts[key] = counts.get(key, 0) + 1
            bar.update()
            if progress and not terminal and time.monotonic() - told > _LOG_SECONDS:
                told = time.monotonic()
                print(f"drawing: {done} of {len(jobs)} scenes", file=sys.stderr, flush=True)
    for name, records in files.items():
        place = folder / ("train" if name == "train_data" else "test") / "annotations" / f"{name}.json"
        place.write_text(json.dumps(records), encoding="utf-8")
    summary = {"settings": _identity(settings), "records": dict(sorted(counts.items()))}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _mapped(workers: int, jobs: list[tuple]) -> Iterator[Iterator[list[_Row]]]:
    """The results of all jobs in their order."""
    if workers == 0:
        yield map(_write_scene, jobs)
        return
    # Not fork: the caller may run threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield pool.map(_write_scene, jobs, chunksize=8)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_scene(job: tuple[WorldSettings, str, str, int]) -> list[_Row]:
    """Draws one scene, writes its image and returns its records with the test files that they are for."""
    settings, folder, split, index = job
    # The test scenes do not depend on how many training scenes there are.
    key = (settings.seed, SPLITS.index(split), index)
    scene = draw_scene(key, settings.size, settings.metres_per_pixel, world=settings.world, held_out=split == "test")
    first_cell = CELLS[index % len(CELLS)] if split == "test" else None
    shares = TEST_SHARES if split == "test" else TRAIN_SHARES
    # The scene's own generators are spawned from the same key; the longer key is independent of them.
    rng = np.random.default_rng((*key, 1))
    facts = Facts(scene, entries_of(DRAWN_CATEGORIES[settings.world]))
    instructions: list[Instruction] = make_instructions(facts, settings.records, shares, rng, first_cell)
    if split == "test" and settings.world == "full" and (empty := make_empty_instruction(facts, shares, rng)):
        instructions.append(empty)
    name = f"{split}_{index:06d}"
    file = f"{name}.{settings.format}"
    options = {"quality": settings.jpeg_quality} if settings.format == "jpg" else {"compress_level": _PNG_LEVEL}
    Image.fromarray(scene.image).save(Path(folder, split, "images", file), **options)
    return [(made.files, made.record(f"{name}_{number}", file)) for number, made in enumerate(instructions)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's arguments."""
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--train", type=int, default=1000, metavar="N", help="training scenes (default 1000)")
    parser.add_argument("--test", type=int, default=100, metavar="N", help="test scenes (default 100)")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help=f"side of a picture, {MIN_SIZE} to {MAX_SIZE} (default 256)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another world (default 0)")
    parser.add_argument("--records", type=int, default=4, metavar="N", help="instructions per scene (default 4)")
    parser.add_argument("--metres-per-pixel", type=float, metavar="M", help="ground sampling distance (default: by the size)")
    parser.add_argument("--world", default="full", metavar="WORLD", help=f"{' or '.join(WORLDS)} (default full)")
    parser.add_argument("--format", default="png", metavar="FORMAT", help=f"of the pictures: {' or '.join(FORMATS)} (default png)")
    parser.add_argument("--jpeg-quality", type=int, default=92, metavar="Q", help="1 to 100, of --format jpg (default 92)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per processor for larger sets)")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.synthesize", description=__doc__.splitlines()[0])
    add_arguments(parser)
    options = vars(parser.parse_args(arguments))
    output, workers = options.pop("output"), options.pop("workers")

    def run() -> None:
        settings = WorldSettings(**options)
        if synthesize(settings, output, workers):
            print(f"{output}: {settings.train} training and {settings.test} test scenes of {settings.size} x {settings.size} pixels")
        else:
            print(f"{output}: already there")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
