"""Validation judges the same held-out records each time, and its numbers do not depend on how they are batched."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from micro_run import micro_model, micro_run
from random_weights import random_params

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.tokenizer import load_tokenizer
from segearth_r2_jax.models.binding import abstract_module, logical_axes
from segearth_r2_jax.models.segearth_r2 import SegEarthR2
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.training.run_config import ValidationConfig
from segearth_r2_jax.training.sample_picture import SamplePictures
from segearth_r2_jax.training.schedules import OptimizerConfig, make_optimizer
from segearth_r2_jax.training.start import check
from segearth_r2_jax.training.state import initial_state, split_params, state_shardings
from segearth_r2_jax.training.validation import Validation, means, overlap

MESH = make_mesh(MeshShape())


def test_overlap_counts_the_cells_inside_the_image():
    """Against a loop over cells; canvas, frame and image of several sizes, larger and smaller than the grid of the prediction."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 2, 8, 8)).astype(np.float32)
    masks = (rng.random((3, 2, 20, 20)) < 0.4).astype(np.uint8)
    frames, sizes = np.array([[20, 20], [16, 16], [5, 5]]), np.array([[20, 13], [9, 16], [5, 2]])
    both, either = overlap(logits, masks, frames, sizes)
    for b in range(3):
        for m in range(2):
            intersection = union = 0
            for i in range(8):
                for j in range(8):
                    y, x = (i + 0.5) * frames[b, 0] / 8, (j + 0.5) * frames[b, 1] / 8
                    if y >= sizes[b, 0] or x >= sizes[b, 1]:
                        continue
                    predicted, true = logits[b, m, i, j] > 0, masks[b, m, int(y), int(x)] > 0
                    intersection += predicted and true
                    union += predicted or true
            assert (int(both[b, m]), int(either[b, m])) == (intersection, union)


def test_means_are_over_labels_and_masks():
    totals = {
        "loss_llm": 30.0,
        "loss_bce": 8.0,
        "labels": 10.0,
        "masks": 4.0,
        "iou": 1.0,
        "intersection": 6.0,
        "union": 8.0,
        "records": 3.0,
    }
    assert means(totals) == {"loss": 5.0, "loss_llm": 3.0, "loss_bce": 2.0, "gIoU": 0.25, "cIoU": 0.75}
    # Nothing but empty rows: nothing is divided by 0.
    assert means(dict.fromkeys(totals, 0.0))["cIoU"] == 1.0


@pytest.fixture(scope="module")
def judged(shards):
    """batch_size, batches -> the validation of a network of random weights, twice."""

    def make(rngs):
        return SegEarthR2(micro_model(), rngs=rngs)

    abstract, optimizer = abstract_module(make), make_optimizer(OptimizerConfig(), 10)
    state = initial_state(*split_params(random_params(make), ("^mask_decoder",)), optimizer)
    placed = state_shardings(jax.eval_shape(lambda: state), optimizer, logical_axes(abstract), MESH)
    run = micro_run(shards)
    tokenizer = load_tokenizer(run.tokenizer)
    pictures = SamplePictures(tokenizer, MESH)

    def judge(batch_size: int, batches: int | None):
        config = dataclasses.replace(run, validation=ValidationConfig(1, "", "train", batches, batch_size, pictures=2))
        validation = Validation(config, tokenizer, MESH)
        step = validation.compile(abstract, placed)
        first, again = validation.run(step, state, pictures), validation.run(step, state, pictures)
        validation.close()
        assert [picture.shape[1] for picture in pictures.draw(first.rows)] == [3 * 64] * 2
        return first, again

    return judge


def test_the_same_records_give_the_same_numbers_however_they_are_batched(judged):
    (small, again), (large, _) = judged(2, 6), judged(4, 3)
    assert small.metrics == again.metrics
    assert small.metrics.keys() == {
        f"validation/{name}" for name in ("loss", "loss_llm", "loss_bce", "loss_dice", "loss_attention", "gIoU", "cIoU")
    }
    assert "12 records" in small.words
    assert "12 records" in large.words
    # The points at which masks are judged are drawn for a batch, the rest is not.
    for name in ("loss_llm", "loss_attention", "gIoU", "cIoU"):
        assert small.metrics[f"validation/{name}"] == pytest.approx(large.metrics[f"validation/{name}"], rel=1e-4), name
    assert small.metrics["validation/loss"] == pytest.approx(
        sum(small.metrics[f"validation/loss_{n}"] for n in ("llm", "bce", "dice", "attention"))
    )
    np.testing.assert_array_equal(small.rows["image"], large.rows["image"])


def test_shards_without_the_split_are_refused(shards):
    run = micro_run(shards, validation=ValidationConfig(every=3))
    with pytest.raises(UserError, match="holds no split 'test'; it has train"):
        Validation(run, load_tokenizer(run.tokenizer), MESH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_best": 2}, "validation.every is 0"),
        ({"keep_best": 2, "validation": ValidationConfig(every=2)}, "3 is not a multiple of config.validation.every 2"),
    ],
)
def test_a_validation_that_cannot_work_is_said_at_once(changes, message):
    with pytest.raises(UserError, match=message):
        check(micro_run("shards", **changes), 512, MESH)
