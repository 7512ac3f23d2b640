"""How fast and in how much memory a network of full size is converted, against a plain copy on the same disk.

    python -m benchmarks.convert [--rounds 3] [--folder DIR] [--output benchmarks/results/convert.json]

Makes a checkpoint of the published sizes (3.3 billion parameters, 6.7 GB) from random float16 numbers, shard by shard in the reference's
layout. Then in turns: a copy of its files, `convert` to a checkpoint folder, `convert` of that back. Every turn is a process of its own,
timed as a whole, begins with none of its files in the page cache and ends when what it wrote is on the disk. At the end the tensors that
came back are compared with the first ones, byte for byte. The folder needs four times the size of the network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from segearth_r2_jax.checkpoints.reference_config import reference_config
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.checkpoints.torch_files.safetensors_writer import write_safetensors
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

_COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
_CONVERT = "from segearth_r2_jax.cli.main import main; import sys; main(['convert', '--source', sys.argv[1], '--target', sys.argv[2]])"
LIBRARIES = ("jax", "orbax-checkpoint", "tensorstore", "safetensors", "numpy")


def write_random(folder: Path, config: SegEarthR2Config) -> int:
    """A merged checkpoint of random float16 numbers, without the tensors that are stored and never used. Returns their bytes."""
    keys = key_map(config)
    layout = {name: (tuple(keys.shapes[name]), np.dtype(np.float16)) for name, parts in keys.parts.items() if parts}
    rng = np.random.default_rng(0)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, (shape, _) in layout.items():
            # Every bit pattern of a finite number: what a cast through another type would change, changes.
            bits = rng.integers(0, 2**16, shape, np.uint16)
            bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000
            yield name, bits.view(np.float16)

    folder.mkdir(parents=True)
    write_safetensors(folder, tensors(), layout)
    (folder / "config.json").write_text(json.dumps(reference_config(config)))
    return sum(2 * int(np.prod(shape)) for shape, _ in layout.values())


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _to_disk(folder: Path, *, forget: bool) -> None:
    """Everything in the folder on the disk; `forget`: and none of it in the page cache."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if forget:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def run(code: str, source: Path, target: Path) -> tuple[float, float]:
    """(seconds, peak resident memory in GB) of a process that makes `target` from `source`."""
    shutil.rmtree(target, ignore_errors=True)
    _to_disk(source, forget=True)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(target)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{code!r} ended with {status}")
    _to_disk(target, forget=False)
    return time.perf_counter() - started, usage.ru_maxrss / 1e6


def identical(first: Path, second: Path) -> bool:
    """Whether two folders hold the same tensors, bit for bit."""
    ours, theirs = read_state_dict(first), read_state_dict(second)
    if ours.keys() != theirs.keys():
        return False
    for name, tensor in ours.items():
        a, b = tensor.load(), theirs[name].load()
        if (a.dtype, a.shape) != (b.dtype, b.shape) or not np.array_equal(a.view(np.uint16), b.view(np.uint16)):
            return False
        tensor.release()
        theirs[name].release()
    return True


def measure(folder: Path, rounds: int, config: SegEarthR2Config) -> dict[str, Any]:
    """Everything, in `folder`."""
    reference, checkpoint, back, copy = (folder / name for name in ("reference", "checkpoint", "back", "copy"))
    size = write_random(reference, config)
    turns = {"copy": (_COPY, reference, copy), "in": (_CONVERT, reference, checkpoint), "out": (_CONVERT, checkpoint, back)}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, (code, source, target) in turns.items():
            measured[name].append(run(code, source, target))
            seconds, memory = measured[name][-1]
            print(f"round {number + 1}, {name}: {seconds:.1f} s, {size / seconds / 1e9:.2f} GB/s, {memory:.2f} GB resident", flush=True)
            if name == "copy":
                shutil.rmtree(copy)
    results: dict[str, Any] = {"bytes": size, "bit_exact": identical(reference, back)}
    for name, runs in measured.items():
        seconds = [run[0] for run in runs]
        results[name] = {
            "seconds": seconds,
            "median_gb_per_second": size / statistics.median(seconds) / 1e9,
            "peak_resident_gb": max(run[1] for run in runs),
            "speed_of_copy": [copied[0] / run[0] for copied, run in zip(measured["copy"], runs, strict=True)],
        }
        results[name]["median_speed_of_copy"] = statistics.median(results[name]["speed_of_copy"])
    return results


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/convert.json"))
    parser.add_argument("--tiny", action="store_true", help="the tiny network instead, to try the command")
    args = parser.parse_args(arguments)
    measured_on = machine(LIBRARIES)
    config = SegEarthR2Config.tiny(vocab_size=512) if args.tiny else SegEarthR2Config.segearth_r2_3b()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results = measure(Path(folder), args.rounds, config)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"machine": measured_on, "rounds": args.rounds, **results}, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
