"""Where a run's numbers and pictures go: a JSONL file, TensorBoard, perhaps Weights & Biases, and a progress bar or plain lines."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from segearth_r2_jax.training.event_file import EventFile
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.wandb_log import WandbLog

LOSSES = ("loss", "loss_llm", "loss_bce", "loss_dice", "loss_attention")


class RunLog:
    """The log of one run in `workdir`: `log.jsonl` (one line per step), `tensorboard/`, `samples/*.png`.

    After an interruption the run continues at `first_step`; whatever the log holds from that step on was not kept and is cut, so that
    the file reads like the log of a run that was never interrupted.

    An object in cloud storage cannot be appended to. There the log is kept in a local temporary folder and copied by `upload`, which the
    run calls before each checkpoint is saved: what the bucket may lack is what the run that continues will write again.
    """

    def __init__(self, workdir: epath.Path, config: RunConfig, *, first_step: int):
        self._workdir = workdir
        self._print_every, self._num_steps = config.print_every, config.num_steps
        self._remote = "://" in str(workdir)
        self._folder = Path(tempfile.mkdtemp(prefix="segearth-r2-log-")) if self._remote else Path(workdir)
        self._path = self._folder / "log.jsonl"
        if self._remote and (workdir / "log.jsonl").exists():
            self._path.write_bytes((workdir / "log.jsonl").read_bytes())
        _cut(self._path, first_step)
        self._wandb = None
        if config.wandb_project is not None:
            self._wandb = WandbLog(config.wandb_project, workdir, self._folder, config.to_dict())
        self._file = self._path.open("a", encoding="utf-8")
        self._board = EventFile(self._folder / "tensorboard", first_step=first_step)
        # disable=None: a bar on a terminal, nothing elsewhere (plain lines are printed instead).
        self._bar = tqdm(total=config.num_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True)
        self._printed = first_step, time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the numbers of step `step` (1-based: the number of finished steps)."""
        self._file.write(json.dumps({"step": step, **{k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        if self._wandb is not None:
            self._wandb.write(step, metrics)
        losses = {name.removeprefix("loss_"): f"{metrics[name]:.3f}" for name in LOSSES if name in metrics}
        self._bar.set_postfix(losses, refresh=False)
        self._bar.update(1)
        if self._bar.disable and (step % self._print_every == 0 or step in (1, self._num_steps)):
            (before, then), self._printed = self._printed, (step, time.monotonic())
            rate = (step - before) / max(self._printed[1] - then, 1e-9)
            words = "  ".join(f"{name} {value}" for name, value in losses.items())
            print(f"step {step}/{self._num_steps}  {words}  {rate:.2f} steps/s", flush=True)

    def picture(self, name: str, step: int, image: np.ndarray) -> epath.Path:
        """Records a picture, uint8 [h, w, 3], as `samples/NAME_STEP.png`; returns its file."""
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, format="PNG")
        folder = self._workdir / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}_{step:06d}.png"
        temporary = folder / f".{path.name}.tmp"
        temporary.write_bytes(encoded.getvalue())
        temporary.replace(path)
        self._board.add_image(name, image, step)
        if self._wandb is not None:
            self._wandb.picture(name, step, image)
        return path

    def message(self, text: str) -> None:
        """A line that does not tear the progress bar."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def upload(self) -> None:
        """Copies the log to a work directory in cloud storage; nothing to do for a local one."""
        self._board.flush()
        self._copy()

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.close()
        self._copy()
        if self._remote:
            shutil.rmtree(self._folder)

    def _copy(self) -> None:
        if not self._remote:
            return
        for file in [self._path, *(self._folder / "tensorboard").iterdir()]:
            target = self._workdir / file.relative_to(self._folder).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())


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
