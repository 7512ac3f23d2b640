"""How many drawn scenes a processor core writes per second: `python benchmarks/scenes.py [--sizes 256 1024] [--seconds 10]`.

One process draws, words and writes training scenes as `data_pipeline.synthesize` does, to a temporary folder. Each row is the median of
five runs by the process's own processor time, with the lowest and the highest; the peak memory is that of the whole process so far.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import PIL

from data_pipeline import synthesize
from data_pipeline.synthesize import WorldSettings

_RUNS = 5
_SETTINGS = ({"world": "simple"}, {"world": "full"}, {"world": "full", "format": "jpg"})


def _rates(settings: WorldSettings, folder: str, seconds: float) -> tuple[int, list[float]]:
    """Scenes per run, and the rate of every run in scenes per second of processor time; other scenes in each run."""
    start = time.process_time()
    synthesize._write_scene((settings, folder, "train", 0))
    each = time.process_time() - start
    count = max(1, round(seconds / _RUNS / each))
    rates = []
    for run in range(_RUNS):
        start = time.process_time()
        for index in range(count):
            synthesize._write_scene((settings, folder, "train", 1 + run * count + index))
        rates.append(count / (time.process_time() - start))
    return count, rates


def main() -> None:
    """Prints one row per size and setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024], metavar="PX")
    parser.add_argument("--seconds", type=float, default=10.0, help="of processor time for each row, about (default 10)")
    options = parser.parse_args()
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors" if hasattr(os, "getloadavg") else ""
    print(f"Python {platform.python_version()}, numpy {np.__version__}, Pillow {PIL.__version__}{load}")
    for size in options.sizes:
        for chosen in _SETTINGS:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "train" / "images").mkdir(parents=True)
                count, rates = _rates(WorldSettings(train=1, test=0, size=size, seed=0, **chosen), folder, options.seconds)
                written = [path.stat().st_size for path in (Path(folder) / "train" / "images").iterdir()]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{size:5} px  {chosen['world']:6}  {chosen.get('format', 'png')}  {statistics.median(rates):7.2f} scenes/s per core "
                f"({min(rates):.2f} to {max(rates):.2f}, {_RUNS} x {count} scenes)  {statistics.mean(written) / 1024:7.0f} KiB each  "
                f"peak {peak:.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
