"""How fast `predict` is on this machine's CPU with the tiny preset: its start, one prediction after another, and how cost grows with work.

    python -m benchmarks.predict [--rounds 15] [--output benchmarks/results/predict.json]

Weights are random: what a prediction costs does not depend on them, as long as answers have the same length and as many masks. What is
measured, how, and what it is compared with stands in benchmarks/README.md. A picture of the curves is written beside the results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from PIL import Image

from benchmarks.curves import Curve, fitted, write_picture
from benchmarks.machine import machine
from benchmarks.random_network import TEMPLATE, by_masks, random_parameters
from benchmarks.timing import in_turns, summary
from benchmarks.torch_peer import TorchPeer
from benchmarks.transformers_peer import TransformersPeer
from data_pipeline.grammar.tokenizer import TINY_TOKENIZER
from segearth_r2_jax.checkpoints.manager import save_base, write_config
from segearth_r2_jax.inference.segment import Segmenter
from segearth_r2_jax.inputs.tokenizer import load_tokenizer, save_tokenizer
from segearth_r2_jax.models.binding import Params
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "torch", "tokenizers", "transformers", "orbax-checkpoint", "pillow")
INSTRUCTION = "Segment the largest lake, the leftmost roof and the river."
# One interactive prediction: words and three masks.
NEW_TOKENS, MASKS = 24, 3
SIZE = (512, 512)


class Bench:
    """A tiny network whose answers have three masks, in both frameworks, and an image."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(TINY_TOKENIZER)
        self.config = SegEarthR2Config.tiny(vocab_size=len(self.tokenizer))
        self.image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        # A seed whose answers can be led to any number of masks.
        self.weights = random_parameters(self.config, seed=4)
        # Mask2Former has no such biases, so that `transformers` could not compute the same.
        for convolution in ("lateral", "output"):
            self.weights["pixel_decoder"][convolution]["conv"]["bias"][:] = 0
        found = self.by_masks(NEW_TOKENS)
        self.segmenter, self.params = found[min(found.keys() - {0}, key=lambda masks: abs(masks - MASKS))]

    def by_masks(self, new_tokens: int) -> dict[int, tuple[Segmenter, Params]]:
        """Segmenters by the masks that their answers have."""
        return by_masks(self.config, self.weights, self.tokenizer, self.image, INSTRUCTION, new_tokens)

    def compiled(self) -> list[int]:
        """Programs compiled so far: encode, answer, masks."""
        return [function._cache_size() for function in self.segmenter._compiled]


def against_torch(bench: Bench, rounds: int) -> dict[str, Any]:
    """One prediction in both frameworks; the outputs are compared first."""
    made = bench.config, bench.params, bench.tokenizer, TEMPLATE
    peers = {f"transformers_{name}": TransformersPeer(*made, attention=name) for name in ("eager", "sdpa")} | {
        "functions": TorchPeer(*made)
    }
    ours = bench.segmenter.segment(bench.image, INSTRUCTION, max_new_tokens=NEW_TOKENS)
    smallest = {}
    for name, peer in peers.items():
        theirs = peer.predict(bench.image, INSTRUCTION, NEW_TOKENS)
        text = bench.tokenizer.decode(theirs.ids).strip()
        overlaps = [
            float((target.mask & mask).sum() / max(1, (target.mask | mask).sum()))
            for target, mask in zip(ours.targets, theirs.masks, strict=True)
        ]
        if text != ours.answer or min(overlaps) < 0.999:
            raise SystemExit(f"the outputs of {name} differ: {ours.answer!r} and {text!r}, IoU {overlaps}")
        smallest[name] = min(overlaps)
    encoded = bench.segmenter.encode(bench.image)

    def torch_with(peer: TorchPeer | TransformersPeer, threads: int) -> None:
        torch.set_num_threads(threads)
        peer.predict(bench.image, INSTRUCTION, NEW_TOKENS)

    processors = len(os.sched_getaffinity(0))
    theirs_by_threads = {
        f"torch_{name}_{words}": lambda peer=peer, threads=threads: torch_with(peer, threads)
        for name, peer in peers.items()
        for words, threads in (("1_thread", 1), ("all_threads", processors))
    }
    seconds = in_turns(
        {
            "ours": lambda: bench.segmenter.segment(bench.image, INSTRUCTION, max_new_tokens=NEW_TOKENS),
            **theirs_by_threads,
            "ours_encode": lambda: jax.block_until_ready(bench.segmenter.encode(bench.image).features),
            "ours_of_an_encoded_image": lambda: bench.segmenter.segment(encoded, INSTRUCTION, max_new_tokens=NEW_TOKENS),
        },
        rounds,
    )
    ratios = {}
    for name in peers:
        fastest = min((key for key in theirs_by_threads if name in key), key=lambda key: statistics.median(seconds[key]))
        each = [b / a for a, b in zip(seconds["ours"], seconds[fastest], strict=True)]
        quartiles = np.round(np.percentile(each, (25, 75)), 2).tolist()
        ratios[name] = {"faster_with": fastest, "median": round(statistics.median(each), 2), "quartiles": quartiles}
    return {
        "image": list(SIZE),
        "new_tokens": NEW_TOKENS,
        "masks": len(ours.targets),
        "smallest_iou": smallest,
        **{name: summary(times) for name, times in seconds.items()},
        "times_torch": ratios,
    }


def several_instructions(bench: Bench, rounds: int) -> dict[str, Any]:
    """Eight instructions about one image: in one batch, which encodes it once, and one by one as if each had its own image."""
    instructions = [f"{INSTRUCTION} Number {number}." for number in range(8)]

    def together() -> None:
        encoded = bench.segmenter.encode(bench.image)
        bench.segmenter.segment_batch([encoded] * len(instructions), instructions, max_new_tokens=NEW_TOKENS)

    def apart() -> None:
        for instruction in instructions:
            bench.segmenter.segment(bench.image, instruction, max_new_tokens=NEW_TOKENS)

    seconds = in_turns({"together": together, "one_by_one": apart}, rounds)
    return {"instructions": len(instructions), **{name: summary(times) for name, times in seconds.items()}}


def several_images(bench: Bench, rounds: int) -> dict[str, Any]:
    """Eight images, encoded one by one, answered in batches of 1, 2, 4 and 8 (`predict --batch-size`)."""

    def answered(size: int) -> None:
        for _ in range(8 // size):
            bench.segmenter.segment_batch([bench.image] * size, [INSTRUCTION] * size, max_new_tokens=NEW_TOKENS)

    seconds = in_turns({f"batch_size_{size}": lambda size=size: answered(size) for size in (1, 2, 4, 8)}, rounds)
    return {"images": 8, **{name: summary(times) for name, times in seconds.items()}}


def growth(bench: Bench, rounds: int) -> tuple[list[Curve], dict[str, Any]]:
    """Latency against images, masks and words, and how many programs each of the three compiled."""
    curves, compilations = [], {}

    def curve(title: str, x_label: str, work: dict[int, Callable[[], Any]]) -> None:
        for function in work.values():
            function()
        before = bench.compiled()
        seconds = in_turns({str(x): function for x, function in work.items()}, rounds)
        assert bench.compiled() == before
        milliseconds = [1000 * statistics.median(times) for times in seconds.values()]
        curves.append(fitted(title, x_label, "ms", list(work), milliseconds))

    def images(number: int) -> None:
        for _ in range(number):
            bench.segmenter.segment(bench.image, INSTRUCTION, max_new_tokens=NEW_TOKENS)

    before = bench.compiled()
    curve("images, one after the other", "images", {n: lambda n=n: images(n) for n in (1, 2, 4, 8, 16)})
    compilations["images"] = [b - a for a, b in zip(before, bench.compiled(), strict=True)]

    # The answers have as many tokens, whatever the number of masks.
    tokens = 40
    before = bench.compiled()
    found = bench.by_masks(tokens)
    numbers = sorted({min(found, key=lambda masks: abs(masks - wanted)) for wanted in (1, 2, 4, 8, 16, 32)} - {0})
    answers = {n: lambda n=n: found[n][0].segment(bench.image, INSTRUCTION, max_new_tokens=tokens) for n in numbers}
    curve("masks of one answer", "masks", answers)
    compilations["masks"] = [b - a for a, b in zip(before, bench.compiled(), strict=True)]

    encoded = bench.segmenter.encode(bench.image)
    before, work = bench.compiled(), {}
    for words in (8, 40, 100, 220, 460):
        text = "lake " * words
        length = len(bench.tokenizer.encode(text))
        work[length] = lambda text=text: bench.segmenter.segment(encoded, text, max_new_tokens=NEW_TOKENS)
    curve("instruction, image encoded before", "tokens", work)
    compilations["instruction_lengths"] = [b - a for a, b in zip(before, bench.compiled(), strict=True)]
    return curves, compilations


def start(bench: Bench, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds from the start of `segearth-r2 predict` to its first mask file and to its end, with an empty and a filled cache."""
    checkpoint, picture = folder / "checkpoint", folder / "scene.png"
    write_config(checkpoint, {"model": bench.config.to_dict(), "template": TEMPLATE})
    save_tokenizer(bench.tokenizer, checkpoint / "tokenizer.json")
    save_base(checkpoint, bench.params)
    Image.fromarray(bench.image).save(picture)
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    measured: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    for number in range(rounds):
        environment["XDG_CACHE_HOME"] = str(folder / f"cache {number}")
        for name, times in (("cold", 1), ("warm", 4)):
            for again in range(times):
                output = folder / f"{name} {number} {again}"
                command = [sys.executable, "-m", "segearth_r2_jax", "predict", str(picture), "--instruction", INSTRUCTION]
                command += ["--checkpoint", str(checkpoint), "--output", str(output), "--max-new-tokens", str(NEW_TOKENS)]
                measured[name].append(first_file(command, environment, output / "scene" / "mask_1.png"))
    return {
        name: {"first_mask_s": [round(a, 2) for a, _ in times], "end_s": [round(b, 2) for _, b in times]}
        | {"median_first_mask_s": round(statistics.median(a for a, _ in times), 2)}
        for name, times in measured.items()
    }


def first_file(command: list[str], environment: dict[str, str], file: Path) -> tuple[float, float]:
    """Seconds from the start of a process until `file` is there, and until it has ended."""
    started, seen = time.perf_counter(), None
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if seen is None and file.exists():
            seen = time.perf_counter()
        time.sleep(0.005)
    ended = time.perf_counter()
    if process.returncode or not file.exists():
        raise SystemExit(f"{command} ended with {process.returncode}")
    return (seen or ended) - started, ended - started


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--start-rounds", type=int, default=1, help="starts with an empty cache; each is followed by four with it filled")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/predict.json"))
    args = parser.parse_args(arguments)
    measured_on = machine(LIBRARIES)
    bench = Bench()
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, Any] = {"start": start(bench, Path(folder), args.start_rounds)}
    results["against_torch"] = against_torch(bench, args.rounds)
    results["several_instructions"] = several_instructions(bench, args.rounds)
    results["several_images"] = several_images(bench, args.rounds)
    curves, results["compilations"] = growth(bench, max(3, args.rounds // 3))
    results["growth"] = [curve._asdict() for curve in curves]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_picture(args.output.with_suffix(".svg"), curves)
    written = {"machine": measured_on, "preset": bench.config.to_dict(), "weights": "random", **results}
    args.output.write_text(json.dumps(written, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
