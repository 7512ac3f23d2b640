"""Where a run's numbers and pictures go: a JSONL file, TensorBoard, and a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

LOSSES = ("loss", "loss_llm", "loss_bce", "loss_dice", "loss_attention")


class RunLog:
    """The log of one run in `workdir`: `log.jsonl` (one line per step), `tensorboard/`, `samples/step_*.png`.

    After an interruption the run continues at `first_step`; whatever the log holds from that step on was not kept and is cut, so that
    the file reads like the log of a run that was never interrupted.
    """

    def __init__(self, workdir: Path, *, first_step: int, num_steps: int, print_every: int):
        self._workdir = workdir
        self._print_every = print_every
        self._path = workdir / "log.jsonl"
        _cut(self._path, first_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)
        # disable=None: a bar on a terminal, nothing elsewhere (plain lines are printed instead).
        self._bar = tqdm(total=num_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True)
        self._num_steps = num_steps
        self._time = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the numbers of step `step` (1-based: the number of finished steps)."""
        self._file.write(json.dumps({"step": step, **{k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        losses = {name.removeprefix("loss_"): f"{metrics[name]:.3f}" for name in LOSSES if name in metrics}
        self._bar.set_postfix(losses, refresh=False)
        self._bar.update(1)
        if self._bar.disable and (step % self._print_every == 0 or step in (1, self._num_steps)):
            rate = self._print_every / max(time.monotonic() - self._time, 1e-9)
            self._time = time.monotonic()
            words = "  ".join(f"{name} {value}" for name, value in losses.items())
            print(f"step {step}/{self._num_steps}  {words}  {rate:.2f} steps/s", flush=True)

    def picture(self, step: int, image: np.ndarray) -> Path:
        """Records a picture, uint8 [h, w, 3]; returns its file."""
        folder = self._workdir / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step_{step:06d}.png"
        temporary = folder / f".{path.name}.tmp"
        Image.fromarray(image).save(temporary, format="PNG")
        os.replace(temporary, path)
        self._board.add_image("sample", image, step, dataformats="HWC")
        return path

    def message(self, text: str) -> None:
        """A line that does not tear the progress bar."""
        self._bar.write(text, file=sys.stdout)

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()


def _cut(path: Path, first_step: int) -> None:
    """Keeps the whole lines of steps up to `first_step` (a killed process may leave half a line)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if step <= first_step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
