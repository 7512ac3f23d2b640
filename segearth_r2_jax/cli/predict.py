"""`segearth-r2 predict IMAGE... --instruction TEXT --checkpoint DIR --output DIR`

For each image a folder OUTPUT/NAME (NAME is that of the image file without its ending):

    answer.json    words, and for each target: phrase, score, pixel area, box, mask file and COCO RLE, on the pixels of the image
    mask_1.png ... one 8-bit grey image per target, 0 or 255, of the size of the image
    overlay.png    the masks over the image, with legend, question and answer

answer.json is written last: where it is, the rest is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segearth_r2_jax.cli.compilation_cache import keep_compiled_programs
from segearth_r2_jax.cli.overlap import overlapped
from segearth_r2_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from segearth_r2_jax.inference.segment import Segmentation, Segmenter

    # What returns the image or raises why it could not be read, and the answer about it.
    Answered = tuple[Callable[[], np.ndarray], Segmentation | None]

HELP = "segment images: masks, overlay and words from an instruction"

# What a folder of images is searched for; a file that is named itself is tried whatever its ending.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".pgm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them (PNG, JPEG, TIFF, ...)")
    parser.add_argument("--instruction", required=True, metavar="TEXT", help="what to find, in your own words")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder made by `train` or `convert`, or gs://...")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="results go to DIR/IMAGE_NAME/")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="images answered at once (1)")
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """How the model runs: the arguments that every verb with a Segmenter has."""
    parser.add_argument("--max-new-tokens", type=positive, default=128, metavar="N", help="longest answer, in tokens (128)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="number format (float32 on a CPU, otherwise bfloat16)")
    parser.add_argument("--int8", action="store_true", help="the language model's weights in 8 bits: half its memory, for a GPU or TPU")
    parser.add_argument("--template", metavar="NAME", help="prompt template, instead of the one that the checkpoint names")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def run(args: argparse.Namespace) -> None:
    """Raises UserError where nothing can be done, and at the end if some image could not be: the others are done nevertheless.

    One thread reads images ahead, this one answers, a third writes results behind.
    """
    paths = find_images(args.images)
    if not args.instruction.strip():
        raise UserError("the instruction is empty; say what to find")
    make_folder(args.output)
    keep_compiled_programs()
    from segearth_r2_jax.inference.segment import Segmenter
    from segearth_r2_jax.inputs.image_reading import read_image

    segmenter = Segmenter.load(args.checkpoint, dtype=args.dtype, int8=args.int8, template=args.template)

    def answer(images: list[np.ndarray]) -> list[Segmentation]:
        return segmenter.segment_batch(images, [args.instruction] * len(images), max_new_tokens=args.max_new_tokens)

    def write(task: tuple[Path, str, Answered]) -> str:
        path, name, (read, segmentation) = task
        image, folder = read(), args.output / name
        write_result(folder, path, image, args.instruction, segmentation, segmenter)
        masks = len(segmentation.targets)
        return f"{path}: {masks} mask{'' if masks == 1 else 's'} -> {folder}: {' '.join(segmentation.answer.split())}"

    failed = 0
    with contextlib.ExitStack() as closed_at_the_end:
        images = closed_at_the_end.enter_context(contextlib.closing(overlapped(read_image, paths, ahead=args.batch_size + 1)))
        tasks = zip(paths, result_names(paths), answered(answer, images, args.batch_size), strict=True)
        lines = closed_at_the_end.enter_context(contextlib.closing(overlapped(write, tasks, ahead=1)))
        for line in lines:
            try:
                print(line(), flush=True)
            except UserError as error:
                failed += 1
                print(f"segearth-r2: error: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"{failed} of {len(paths)} images could not be segmented; the others are in {args.output}")


def answered(
    answer: Callable[[list[np.ndarray]], list[Segmentation]], images: Iterator[Callable[[], np.ndarray]], batch_size: int
) -> Iterator[Answered]:
    """Each image with its answer, None if it could not be read; `batch_size` images are answered at once."""
    while batch := list(itertools.islice(images, batch_size)):
        whole = {}
        for place, image in enumerate(batch):
            with contextlib.suppress(UserError):
                whole[place] = image()
        answers = dict(zip(whole, answer(list(whole.values())), strict=True))
        yield from ((image, answers.get(place)) for place, image in enumerate(batch))


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The image files of the command line, those of a folder in alphabetical order; UserError if a folder holds none."""
    paths: list[Path] = []
    for path in map(Path, arguments):
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS and file.is_file())
        if not found:
            raise UserError(f"{path}: holds no image ({', '.join(IMAGE_ENDINGS)})")
        paths += found
    return list(dict.fromkeys(paths))


def result_names(paths: Sequence[Path]) -> list[str]:
    """A folder name for each image: its name without ending, with ending or a number where that is taken."""
    names: list[str] = []
    for path in paths:
        stem = path.stem or "image"
        candidates = [stem, path.name.replace(".", "_"), *(f"{stem}_{n}" for n in range(2, len(paths) + 2))]
        taken = {name.casefold() for name in names}
        names.append(next(name for name in candidates if name.casefold() not in taken))
    return names


def make_folder(folder: Path) -> None:
    """Creates a folder for results; UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder for results ({error.strerror})") from None


def write_result(folder: Path, path: Path, image: np.ndarray, instruction: str, segmentation: Segmentation, segmenter: Segmenter) -> None:
    """Writes what was answered about one image; masks of an older, longer answer go."""
    import numpy as np
    from PIL import Image

    from segearth_r2_jax.inference.overlay import draw_overlay

    make_folder(folder)
    answer = describe(path, image.shape[:2], instruction, segmentation, segmenter)
    try:
        (folder / "answer.json").unlink(missing_ok=True)
        for old in folder.iterdir():
            if re.fullmatch(r"mask_\d+\.png", old.name):
                old.unlink()
        for target, entry in zip(segmentation.targets, answer["targets"], strict=True):
            picture = Image.fromarray(target.mask.astype(np.uint8) * 255)
            write_whole(folder / entry["mask"], lambda file, picture=picture: picture.save(file, "png"))
        overlay = draw_overlay(image, instruction, segmentation)
        write_whole(folder / "overlay.png", lambda file: overlay.save(file, "png"))
        text = json.dumps(answer, ensure_ascii=False, indent=2, allow_nan=False)
        write_whole(folder / "answer.json", lambda file: file.write_text(text + "\n", encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None


def describe(path: Path, size: tuple[int, int], instruction: str, segmentation: Segmentation, segmenter: Segmenter) -> dict[str, Any]:
    """The content of answer.json."""
    from segearth_r2_jax.raster.rle import encode

    return {
        "image": str(path),
        "image_size": {"height": size[0], "width": size[1]},
        "instruction": instruction,
        "answer": segmentation.answer,
        "finished": segmentation.finished,
        "targets": [
            {
                "phrase": target.phrase,
                "score": round(target.score, 6),
                "area": target.area,
                "box": list(target.box) if target.box else None,
                "mask": f"mask_{number}.png",
                "rle": encode(target.mask),
            }
            for number, target in enumerate(segmentation.targets, 1)
        ],
        "checkpoint": segmenter.checkpoint,
        "step": segmenter.step,
        "template": segmenter.template,
        "dtype": segmenter.dtype,
        "int8": segmenter.int8,
    }


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a file beside `path`, which then takes its place: `path` is never half written."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
