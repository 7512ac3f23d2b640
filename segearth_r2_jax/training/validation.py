"""Validation while a run goes on: losses and mask overlap on held-out records, without gradients and without dropout.

Teacher forced: the language model reads the true answer, and the masks of its [SEG] tokens are compared with the targets in their
order. They are compared at the decoder's own resolution (stride 4 of the letterboxed image): a logit above 0 is foreground, the target is
sampled at the centre of the cell, and only cells inside the image count, not its padding. What a user sees, masks of an answer that the
model has worded itself on the pixels of the image, `segearth-r2 evaluate` measures; it is lower.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from segearth_r2_jax.inputs.tokenizer import Tokenizer
from segearth_r2_jax.models.binding import Params, bind
from segearth_r2_jax.models.segearth_r2 import SegEarthR2
from segearth_r2_jax.objectives.language_modeling import IGNORE_LABEL
from segearth_r2_jax.objectives.mask_losses import draw_points
from segearth_r2_jax.objectives.total import total_loss
from segearth_r2_jax.placement import placed
from segearth_r2_jax.sharding import rules
from segearth_r2_jax.training.batches import loader_config, open_loader, to_devices
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.sample_picture import SamplePictures
from segearth_r2_jax.training.state import TrainState, join_params
from segearth_r2_jax.training.step import Batch, StepConfig, forward

Sums = dict[str, jax.Array]
Judge = Callable[[Params, Params, Batch, jax.Array], tuple[Sums, jax.Array]]


class Validated(NamedTuple):
    """metrics: "validation/..."; rows: of the first records, for `SamplePictures.draw`; words: a line for the user."""

    metrics: dict[str, float]
    rows: dict[str, jax.Array]
    words: str


class Validation:
    """The held-out records of a run; opened once, read from the first record each time."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, mesh: Mesh):
        """Raises UserError if the shards do not fit the configuration."""
        self._config, self._step, self._mesh = config.validation, config.step, mesh
        self._batch_size = config.validation.batch_size or config.data.batch_size
        # Threads only: worker processes would be started for each validation. The seed of the run does not choose the records.
        own = dataclasses.replace(loader_config(config), batch_size=self._batch_size, num_epochs=1, seed=0, workers=0)
        self._loader = open_loader(config.validation.shards or config.data.shards, tokenizer, own, mesh, split=config.validation.split)
        self._beginning = self._loader.get_state()
        self._by_row = rules.batch_sharding(mesh)

    def compile(self, abstract_model: SegEarthR2, shardings: TrainState) -> Judge:
        """`validation_step` jitted for states that lie as `shardings`."""
        judge, whole = validation_step(abstract_model, self._step), rules.replicated(self._mesh)

        def placed_judge(trainable: Params, frozen: Params, batch: Batch, number: jax.Array) -> tuple[Sums, jax.Array]:
            with placed(rules.placement(self._mesh)):
                return judge(trainable, frozen, batch, number)

        return jax.jit(
            placed_judge,
            in_shardings=(shardings.trainable, shardings.frozen, self._by_row, whole),
            out_shardings=(whole, self._by_row),
        )

    def run(self, judge: Judge, state: TrainState, pictures: SamplePictures) -> Validated:
        """Judges `state`; all processes call it, and all get the same numbers."""
        began, totals, rows = time.monotonic(), {}, {}
        pending: Sums = {}
        self._loader.set_state(self._beginning)
        for number, batch in enumerate(itertools.islice(self._loader, self._config.batches)):
            arrays = to_devices(batch, self._by_row)
            sums, mask_logits = judge(state.trainable, state.frozen, arrays, np.int32(number))
            if number == 0 and self._config.pictures:
                rows = pictures.rows(arrays, mask_logits, min(self._config.pictures, self._batch_size))
            # One batch behind, so that the next one is already on its way.
            _add(totals, pending)
            pending = sums
        _add(totals, pending)
        self._loader.close()
        metrics = means(totals)
        words = (
            f"validation: loss {metrics['loss']:.3f}  gIoU {metrics['gIoU']:.4f}  cIoU {metrics['cIoU']:.4f}  "
            f"({totals['records']:.0f} records, {totals['masks']:.0f} masks, {time.monotonic() - began:.1f} s)"
        )
        return Validated({f"validation/{name}": value for name, value in metrics.items()}, rows, words)

    def close(self) -> None:
        self._loader.close()


def validation_step(abstract_model: SegEarthR2, config: StepConfig) -> Judge:
    """The pass over one batch as a plain function of (trainable, frozen, batch, number of the batch): sums over the batch, and the final
    mask logits [b, m, h, w].

    The sums, over all rows: each loss term times what it is a mean over ("labels" or "masks"), these counts, "records", and of the masks
    "iou", "intersection" and "union" (in cells).
    """

    def judge(trainable: Params, frozen: Params, batch: Batch, number: jax.Array) -> tuple[Sums, jax.Array]:
        model = bind(abstract_model, join_params(trainable, frozen))
        supervise = config.weights.attention > 0
        output = forward(model, batch, dtype=config.dtype, supervise_attention=supervise, rng=None)
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        draws = draw_points(key, output.mask_logits.shape[0], batch["mask_valid"].size, config.points)
        _, terms = total_loss(
            output, batch, draws, config.weights, config.points, logits_of=model.phi.logits, logits_chunk=config.logits_chunk
        )
        labels = jnp.sum(batch["labels"][:, 1:] != IGNORE_LABEL)
        valid = batch["mask_valid"]
        sums = {name: term * (labels if name == "loss_llm" else valid.sum()) for name, term in terms.items()}
        mask_logits = output.mask_logits[-1].astype(jnp.float32)
        intersection, union = overlap(mask_logits, batch["masks"], batch["mask_frame"], batch["mask_size"])
        iou = jnp.where(union > 0, intersection / jnp.maximum(union, 1), 1.0)
        counts = {"intersection": intersection, "union": union, "iou": iou}
        sums |= {name: jnp.sum(jnp.where(valid, value, 0)) for name, value in counts.items()}
        sums |= {"labels": labels, "masks": valid.sum(), "records": jnp.sum(batch["record_index"] >= 0)}
        return sums, mask_logits

    return judge


def overlap(mask_logits: jax.Array, masks: jax.Array, frames: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Intersection and union of predicted and true masks, in cells of the prediction.

    Args:
        mask_logits: [b, m, h, w], over the whole letterboxed frame.
        masks: [b, m, c, c], nonzero inside the target.
        frames: [b, 2], (height, width) of the top-left region of the canvas that the prediction spans.
        sizes: [b, 2], (height, width) of the top-left region that the image takes; cells with their centre outside do not count.

    Returns:
        int32 [b, m] each.
    """
    h, w = mask_logits.shape[2:]

    def of_row(logits: jax.Array, targets: jax.Array, frame: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, x = ((jnp.arange(n) + 0.5) * frame[axis] / n for axis, n in enumerate((h, w)))
        inside = (y < size[0])[:, None] & (x < size[1])
        truth = targets[:, y.astype(jnp.int32)[:, None], x.astype(jnp.int32)] > 0
        predicted = logits > 0
        both = (predicted & truth & inside).sum((1, 2), dtype=jnp.int32)
        either = ((predicted | truth) & inside).sum((1, 2), dtype=jnp.int32)
        return both, either

    return jax.vmap(of_row)(mask_logits, masks, frames, sizes)


def means(totals: dict[str, float]) -> dict[str, float]:
    """Sums over all records -> loss_* (means over labels or masks), loss (their sum), gIoU (mean IoU of the masks, an empty union counting
    as 1) and cIoU (sum of intersections over sum of unions)."""
    over = {name: totals["labels"] if name == "loss_llm" else totals["masks"] for name in totals if name.startswith("loss_")}
    losses = {name: totals[name] / max(count, 1) for name, count in over.items()}
    return {
        "loss": sum(losses.values()),
        **losses,
        "gIoU": totals["iou"] / max(totals["masks"], 1),
        "cIoU": totals["intersection"] / totals["union"] if totals["union"] else 1.0,
    }


def _add(totals: dict[str, float], sums: dict[str, Any]) -> None:
    for name, value in jax.device_get(sums).items():
        totals[name] = totals.get(name, 0.0) + float(value)
