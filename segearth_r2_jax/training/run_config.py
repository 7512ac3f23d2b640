"""Everything that defines a run, typed; `configs/*.py` build one and hand it out as a ConfigDict that the command line can override."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from segearth_r2_jax import dataclass_io
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config
from segearth_r2_jax.sharding.mesh import MeshShape
from segearth_r2_jax.training.schedules import OptimizerConfig
from segearth_r2_jax.training.step import StepConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the loader yields; sizes of images and tokens follow from the model.

    shards: a folder made by `python -m data_pipeline.build_shards`, or several with the share of the rows that each gives:
    "DIR=0.7,OTHER=0.3" (without shares, "DIR,OTHER", every record comes equally often); folders may be in cloud storage (gs://).
    batch_size: images per step over all devices. token_buckets: lengths to which token rows are padded; each is compiled once, and all
    rows of a batch are of one. max_masks: mask slots per image. mask_canvas: side of the square that holds a target; larger images have
    their targets shrunk to it. workers: loader processes per host (0: threads only). on_corrupt: a damaged record is an "error", or
    "skip" leaves its row empty and says so.
    """

    shards: str
    batch_size: int
    token_buckets: tuple[int, ...] = (1024,)
    max_masks: int = 4
    mask_canvas: int = 1024
    template: str = "train_phi_v0"
    workers: int = 0
    on_corrupt: str = "error"


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """When and on what a run is judged while it goes on.

    every: steps from one validation to the next (0: none); the last step is validated, too. shards: as `DataConfig.shards` (empty: the
    same folders); split: the one of theirs that is held out. batches: how many of `batch_size` images (None: as in training) are judged,
    always the same ones; None: all that the records fill. pictures: of how many records one is drawn.
    """

    every: int = 0
    shards: str = ""
    split: str = "test"
    batches: int | None = None
    batch_size: int | None = None
    pictures: int = 4


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A training run.

    tokenizer: a `tokenizer.json` or its folder. trainable: regular expressions found in the paths of the parameters that are trained;
    the rest is kept in `frozen_dtype` without gradient or optimizer state. initial_checkpoint: a checkpoint folder to start from, or
    PyTorch weights as `convert` takes them without further arguments (None: random weights). initial_adapter: a checkpoint folder of
    which only the low-rank adapters are taken. Intervals are in steps.
    keep_checkpoints: how many of the last checkpoints are kept; keep_best: and how many of those with the largest `best_metric` besides.
    wandb_project: also log to this project of Weights & Biases (None: do not).
    """

    model: SegEarthR2Config
    tokenizer: str
    data: DataConfig
    num_steps: int
    optimizer: OptimizerConfig = OptimizerConfig()
    step: StepConfig = StepConfig()
    mesh: MeshShape = MeshShape()
    trainable: tuple[str, ...] = ("",)
    frozen_dtype: str = "bfloat16"
    initial_checkpoint: str | None = None
    initial_adapter: str | None = None
    seed: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    keep_best: int = 0
    best_metric: str = "validation/gIoU"
    print_every: int = 50
    picture_every: int = 500
    validation: ValidationConfig = ValidationConfig()
    wandb_project: str | None = None

    def to_config_dict(self) -> ConfigDict:
        """The form whose fields the command line overrides (`--config.data.batch_size=8`).

        A language model without low-rank adapters has them with rank 0 there, so that a rank switches them on, and 0 off.
        """
        values = dataclasses.asdict(self)
        if self.model.phi.lora is None:
            values["model"]["phi"]["lora"] = dataclasses.asdict(LoraConfig(rank=0))
        return _with_placeholders(RunConfig, ConfigDict(values))

    @classmethod
    def from_config_dict(cls, config: ConfigDict) -> RunConfig:
        """Raises UserError naming a field that is unknown, missing, of another type or out of range."""
        try:
            built = dataclass_io.from_dict(cls, config.to_dict(), "config")
        except ValueError as error:
            raise UserError(f"config: {error}") from error
        phi = built.model.phi
        if phi.lora is None or phi.lora.rank > 0:
            return built
        return dataclasses.replace(built, model=dataclasses.replace(built.model, phi=dataclasses.replace(phi, lora=None)))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _with_placeholders(cls: type, config: ConfigDict) -> ConfigDict:
    """A None of an optional plain field knows its type, so that the command line can fill it."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            _with_placeholders(hint, config[name])
        elif config[name] is None:
            plain = [option for option in typing.get_args(hint) if option in (str, int, float, bool)]
            if plain:
                config[name] = config_dict.placeholder(plain[0])
    return config
