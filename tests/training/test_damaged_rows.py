"""The empty rows that a loader gives in place of damaged records teach nothing and break nothing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_run import micro_run
from random_weights import random_params
from shards_example import make_record

from data_pipeline.order import Slot
from data_pipeline.rows import MakeRow, collate, empty_row
from data_pipeline.shard_folder import ListedRecords
from segearth_r2_jax.inputs.tokenizer import load_tokenizer
from segearth_r2_jax.models.binding import abstract_module, bind
from segearth_r2_jax.models.segearth_r2 import SegEarthR2
from segearth_r2_jax.objectives.mask_losses import draw_points
from segearth_r2_jax.objectives.total import total_loss
from segearth_r2_jax.training.batches import loader_config
from segearth_r2_jax.training.step import forward

RUN = micro_run("shards")
CONFIG = dataclasses.replace(loader_config(RUN), on_corrupt="skip")


@pytest.fixture(scope="module")
def losses():
    """batch -> (terms of the loss, norm of its gradient), all terms supervised."""

    def make(rngs):
        return SegEarthR2(RUN.model, rngs=rngs)

    params, abstract = random_params(make), abstract_module(make)

    def objective(params, batch):
        model = bind(abstract, params)
        output = forward(model, batch, dtype="float32", supervise_attention=True, rng=None)
        draws = draw_points(jax.random.key(0), output.mask_logits.shape[0], batch["mask_valid"].size, RUN.step.points)
        return total_loss(output, batch, draws, RUN.step.weights, RUN.step.points, logits_of=model.phi.logits)

    @jax.jit
    def run(batch):
        (loss, terms), gradient = jax.value_and_grad(objective, has_aux=True)(params, batch)
        finite = jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]).all()
        norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
        return {**terms, "loss": loss}, norm, finite

    return run


def empty(bucket: int = 256):
    return empty_row(Slot(0, bucket), CONFIG, "damaged")


def good(number: int, bucket: int = 256):
    source = ListedRecords([make_record(number, masks=2)])
    row = MakeRow(source, load_tokenizer(RUN.tokenizer), CONFIG).map(Slot(0, bucket))
    assert row["damage"] == ""
    return row


def test_a_batch_of_empty_rows_has_no_loss_and_no_gradient(losses):
    terms, norm, finite = losses(collate([empty(), empty()], CONFIG))
    assert {name: float(value) for name, value in terms.items()} == dict.fromkeys(terms, 0.0)
    assert float(norm) == 0
    assert finite


def test_an_empty_row_adds_nothing_to_the_others(losses):
    batch = collate([good(1), empty()], CONFIG)
    terms, norm, finite = losses(batch)
    assert finite
    assert norm > 0
    assert float(terms["loss_llm"]) > 0
    assert float(terms["loss_attention"]) != 0
    # Whatever stands in the empty row, the numbers are those of the other.
    other = {key: np.array(value) for key, value in batch.items()}
    other["image"][1] = other["image"][0]
    other["image_siglip"][1] = other["image_siglip"][0]
    again, norm_again, _ = losses(other)
    for name, value in terms.items():
        assert float(again[name]) == pytest.approx(float(value), rel=1e-6), name
    assert float(norm_again) == pytest.approx(float(norm), rel=1e-5)
