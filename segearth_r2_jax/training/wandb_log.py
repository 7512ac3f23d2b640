"""A run's numbers and pictures at Weights & Biases, which is optional: `pip install wandb`."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from segearth_r2_jax.checkpoints.json_files import read_json, write_json
from segearth_r2_jax.errors import UserError


def require_wandb(project: str | None) -> None:
    """Says before anything starts that the package is missing.

    Raises:
        UserError: a project is named, and there is no package `wandb`.
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(f"config.wandb_project is {project!r}, but the package wandb is not installed: pip install wandb")


class WandbLog:
    """One run there for one work directory: `wandb.json` keeps its id, under which a run that continues goes on.

    Steps that an interrupted run does once more are there already; the service leaves them as they are.
    """

    def __init__(self, project: str, workdir: epath.Path, folder: Path, config: Mapping[str, Any]):
        """folder: a local one for the package's own files.

        Raises:
            UserError: the service does not let us in.
        """
        import wandb

        self._wandb = wandb
        file = workdir / "wandb.json"
        run = read_json(file) if file.exists() else {"project": project, "id": uuid.uuid4().hex[:8]}
        try:
            self._run = wandb.init(
                project=run["project"], id=run["id"], name=workdir.name, resume="allow", dir=str(folder), config=dict(config)
            )
        except wandb.Error as error:
            raise UserError(f"config.wandb_project is {project!r}, but wandb says: {' '.join(str(error).split())}") from error
        write_json(file, run)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()
