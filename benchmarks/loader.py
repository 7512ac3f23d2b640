"""How fast batches are made: this loader, a PyTorch DataLoader doing the reference's transforms, and a loop that only decodes and resizes.

    python -m benchmarks.loader [--real DIR] [--output benchmarks/results/loader.json]

All three get the same images, the same number of worker processes and the same processors (they are pinned to one per worker), and are
asked for batches in turns. Samples per second per processor are medians over the turns; ratios compare medians. Where other programs
run on the machine, the processor time that a sample takes, of all processes together, says more. `--real` adds the images of 1024 x 1024
pixels of a data set in the LaSeRS layout. Needs torch and pycocotools; OpenCV is used where it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import loader_contenders as contenders
from benchmarks.machine import machine
from data_pipeline import build_shards, synthesize
from data_pipeline.mask_canvas import cut_masks
from data_pipeline.order import Slot
from data_pipeline.rows import LoaderConfig, MakeRow, collate
from data_pipeline.shard_folder import ShardedRecords
from segearth_r2_jax.inputs.conversation import encode_training, expand
from segearth_r2_jax.inputs.image_processing import squash_picture
from segearth_r2_jax.inputs.image_reading import decode_picture
from segearth_r2_jax.inputs.letterbox import Letterbox
from segearth_r2_jax.inputs.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).resolve().parent.parent / "segearth_r2_jax" / "inputs" / "tiny_tokenizer.json"
LIBRARIES = ("grain", "numpy", "pillow", "torch", "pycocotools", "opencv-python-headless", "transformers")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long and with what to measure."""

    workers: tuple[int, ...]
    scenes: int
    rounds: int
    batches: int
    warm_up: int = 4


def measure(folder: Path, shards: Path, workers: int, settings: Settings) -> dict[str, Any]:
    """Samples per second per processor of every contender on one set of images."""
    processors = sorted(os.sched_getaffinity(0))[: max(1, workers)]
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        with contextlib.ExitStack() as stack:
            running = {
                "this loader": stack.enter_context(contextlib.closing(contenders.ours(shards, TOKENIZER, workers))),
                "PyTorch DataLoader, reference transforms": stack.enter_context(
                    contextlib.closing(contenders.reference(folder, TOKENIZER, workers))
                ),
                "decode and resize only": stack.enter_context(contextlib.closing(contenders.decode_loop(folder, TOKENIZER, workers))),
            }
            rates: dict[str, list[float]] = {name: [] for name in running}
            costs: dict[str, list[float]] = {name: [] for name in running}
            for _ in range(settings.rounds):
                for name, samples in running.items():
                    rate, cost = _rate(samples, settings)
                    rates[name].append(rate / workers)
                    costs[name].append(cost)
    finally:
        os.sched_setaffinity(0, everything)
    found, taken = ({name: _summary(values) for name, values in measured.items()} for measured in (rates, costs))
    mine, torch, loop = (found[name]["median"] for name in rates)
    mine_taken, torch_taken, loop_taken = (taken[name]["median"] for name in costs)
    return {
        "workers": workers,
        "processors": len(processors),
        "samples_per_round": settings.batches * contenders.BATCH,
        "samples_per_second_per_processor": found,
        "ratio_to_pytorch": round(mine / torch, 3),
        "ratio_to_decode_and_resize": round(mine / loop, 3),
        "processor_milliseconds_per_sample": taken,
        "ratio_to_pytorch_by_processor_time": round(torch_taken / mine_taken, 3),
        "ratio_to_decode_and_resize_by_processor_time": round(loop_taken / mine_taken, 3),
    }


def _rate(samples: Iterator[int], settings: Settings) -> tuple[float, float]:
    """Samples per second, and processor milliseconds per sample, over some batches, after those that had been waiting are gone."""
    for _ in range(settings.warm_up):
        next(samples)
    start, before = time.perf_counter(), _processor_seconds()
    count = sum(next(samples) for _ in range(settings.batches))
    return count / (time.perf_counter() - start), 1000 * (_processor_seconds() - before) / count


def _processor_seconds() -> float:
    """What this process and its children have used so far."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(entry.name) == os.getpid() or int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _summary(values: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(values), 2), "rounds": [round(value, 2) for value in values]}


def stages(shards: Path, repeats: int = 40) -> dict[str, float]:
    """Milliseconds that each step takes one sample, in one thread: medians."""
    records, tokenizer = ShardedRecords(shards), load_tokenizer(TOKENIZER)
    config = LoaderConfig(
        batch_size=contenders.BATCH,
        image_size=contenders.IMAGE_SIZE,
        siglip_size=contenders.SIGLIP_SIZE,
        num_image_tokens=contenders.IMAGE_TOKENS,
        token_buckets=(contenders.BUCKET,),
        max_masks=contenders.MAX_MASKS,
        too_many_masks="skip",
    )
    usable = np.flatnonzero(records.masks_per_record <= contenders.MAX_MASKS).tolist()
    make = MakeRow(records, tokenizer, config)
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        taken.setdefault(name, []).append(1000 * (time.perf_counter() - start))
        return result

    for number in range(repeats):
        index = usable[number % len(usable)]
        record = timed("read, verify and parse the record", lambda index=index: records[index])
        picture = timed("decode the image", lambda record=record: decode_picture(record.image_bytes, "image"))
        width, height = picture.size
        timed("letterbox for Swin", lambda p=picture: Letterbox(p.height, p.width, config.image_size).place_picture(p))
        timed("resize for SigLIP", lambda p=picture: squash_picture(p, config.siglip_size))
        timed("decode the masks", lambda r=record, h=height, w=width: cut_masks(r.masks, h, w, config.mask_canvas, "record"))
        timed(
            "tokenize",
            lambda r=record: expand(encode_training(tokenizer, config.template, r.instruction, r.answer), config.num_image_tokens),
        )
        row = timed("all of a row", lambda index=index: make.map(Slot(index, contenders.BUCKET)))
        timed("put into a batch", lambda row=row: collate([row], config))
        timed("decode and resize only", lambda record=record: contenders.decode_and_resize(record.image_bytes))
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def as_jpeg(folder: Path, output: Path) -> Path:
    """A copy of the training rows of `folder` whose images are JPEGs of quality 95."""
    annotations = json.loads((folder / "train" / "annotations" / "train_data.json").read_text())
    for row in annotations:
        name = str(Path(row["image_name"]).with_suffix(".jpg"))
        target = output / "train" / "images" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(folder / "train" / "images" / row["image_name"]).convert("RGB").save(target, quality=95)
        row["image_name"] = name
    _write_rows(output, annotations)
    return output


def real_images(folder: Path, output: Path) -> Path:
    """The rows of the test files of a LaSeRS folder whose image is 1024 x 1024, as training rows."""
    rows: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / "test" / "annotations").glob("*.json")):
        for row in json.loads(file.read_text()):
            path = folder / "test" / "images" / row["image_name"]
            if "mask" in row and Image.open(path).size == (contenders.IMAGE_SIZE, contenders.IMAGE_SIZE):
                target = output / "train" / "images" / row["image_name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                rows[row["id"]] = row
    _write_rows(output, list(rows.values()))
    return output


def _write_rows(output: Path, rows: list[dict[str, Any]]) -> None:
    (output / "train" / "annotations").mkdir(parents=True)
    (output / "train" / "annotations" / "train_data.json").write_text(json.dumps(rows))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--real", type=Path, metavar="DIR", help="a data set in the LaSeRS layout; its 1024-px test images are measured too"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="worker processes, one processor each")
    parser.add_argument("--scenes", type=int, default=24, metavar="N", help="drawn pictures of 1024 x 1024")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each contender")
    parser.add_argument("--batches", type=int, default=12, metavar="N", help="batches of 8 per turn")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the results go, as JSON")
    options = parser.parse_args(arguments)
    settings = Settings(tuple(options.workers), options.scenes, options.rounds, options.batches)
    results: dict[str, Any] = {"machine": machine(LIBRARIES), "sets": {}}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        draw = ["--output", str(root / "drawn PNG"), "--train", str(settings.scenes), "--test", "1", "--size", "1024", "--records", "4"]
        synthesize.main(draw)
        folders = [root / "drawn PNG", as_jpeg(root / "drawn PNG", root / "drawn JPEG")]
        if options.real is not None:
            folders.append(real_images(options.real, root / "real PNG"))
            folders.append(as_jpeg(folders[-1], root / "real JPEG"))
        for folder in folders:
            shards = root / f"{folder.name} shards"
            build_shards.main(["--source", "lasers", "--input", str(folder), "--output", str(shards), "--split", "train"])
            rows = contenders.read_rows(folder)
            size = statistics.mean((folder / "train" / "images" / row["image_name"]).stat().st_size for row in rows)
            results["sets"][folder.name] = {
                "rows": len(rows),
                "masks_per_row": round(statistics.mean(len(row["mask"]) for row in rows), 2),
                "mean_file_bytes": round(size),
                "milliseconds_of_a_sample": stages(shards),
                "measured": [measure(folder, shards, workers, settings) for workers in settings.workers],
            }
            print(json.dumps({folder.name: results["sets"][folder.name]}, indent=1), flush=True)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
