"""A whole training pass gives the numbers of the reference: every stage's arrays, the four losses, every gradient."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_reference import Arrays
from reference import fixture_config, fixture_model, fixture_parameters

from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.inputs.conversation import IGNORE_LABEL, IMAGE_SLOT, PADDING, REFER_SLOT
from segearth_r2_jax.models.binding import bind
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Output
from segearth_r2_jax.objectives.mask_losses import PointDraws, PointSampling, mask_losses, select_points
from segearth_r2_jax.objectives.spatial_attention import attention_losses, attention_target
from segearth_r2_jax.objectives.total import LossWeights, total_loss

GRADIENT_TOLERANCE = {"float32": 2e-3, "float64": 1e-6}
LOSS_TOLERANCE = {"float32": 1e-5, "float64": 1e-8}
FORWARD_TOLERANCE = {"float32": 2e-5, "float64": 1e-8}
EMBEDS_TOLERANCE = FORWARD_TOLERANCE["float32"]  # Stored in float32 only.


def collate(stored: Arrays, num_image_tokens: int) -> dict[str, np.ndarray]:
    """The fixture's reference-form rows, expanded as the reference's splice does it, with masks in slots of (image, number).

    The reference pads short rows with padding ids first and, after the image is in, with zero vectors up to the longest row.
    """
    rows = []
    for i, count in enumerate(stored["mask_num"]):
        refer = stored[f"token_refer_id_{i}"]
        ids, labels, seg = (stored[key][i] for key in ("input_ids", "labels", "SEG_token_embedding_indices"))
        widths = np.where(ids == IMAGE_SLOT, num_image_tokens, np.where(ids == REFER_SLOT, len(refer), 1))
        starts = np.cumsum(widths) - widths
        expanded = np.repeat(ids, widths)
        at = starts[ids == REFER_SLOT][0]
        expanded[at : at + len(refer)] = refer
        marked = np.repeat(ids < 0, widths)
        inserted = widths.sum() - len(ids)
        rows.append(
            {
                "token_ids": expanded,
                "labels": np.where(marked, IGNORE_LABEL, np.repeat(labels, widths)),
                "attention_mask": np.concatenate([np.ones(inserted, bool), stored["attention_mask"][i]]),
                "seg": np.where(marked, 0, np.repeat(seg, widths)),
                "image_start": starts[ids == IMAGE_SLOT][0],
                "count": count,
            }
        )
    length, slots = max(len(row["token_ids"]) for row in rows), max(row["count"] for row in rows)
    size = stored["masks"].shape[-2:]
    batch: dict[str, Any] = {
        key: np.stack([np.pad(row[key], (0, length - len(row[key])), constant_values=fill) for row in rows])
        for key, fill in (("token_ids", PADDING), ("labels", IGNORE_LABEL), ("attention_mask", False), ("seg", 0))
    }
    batch["image_start"] = np.array([row["image_start"] for row in rows])
    batch["seg_positions"] = np.zeros((len(rows), slots), np.int32)
    batch["mask_valid"] = np.arange(slots) < np.array([[row["count"]] for row in rows])
    for i, row in enumerate(batch["seg"]):
        batch["seg_positions"][i, : rows[i]["count"]] = np.flatnonzero(row)
    batch["masks"] = to_slots(batch, stored["masks"][:, 0])
    batch["mask_size"] = batch["mask_frame"] = np.tile(np.array(size), (len(rows), 1))
    return batch


def to_slots(batch: dict[str, Any], values: np.ndarray) -> np.ndarray:
    """[masks, ..] in the reference's flat order -> [b, m, ..]."""
    slots = np.zeros((*batch["mask_valid"].shape, *values.shape[1:]), values.dtype)
    slots[batch["mask_valid"]] = values
    return slots


def prediction_names(stored: Arrays) -> list[str]:
    """In our order: the decoder's predictions from the first on, the final one last."""
    count = next(i for i in itertools.count() if f"rand_oversample_aux{i}" not in stored)
    return [*(f"aux{i}" for i in range(count)), "final"]


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def stored(fixtures_dir: Path, precision: str) -> Arrays:
    return Arrays(fixtures_dir / "train_forward.npz", precision)


def stored_draws(stored: Arrays, batch: dict[str, Any], precision: str) -> PointDraws:
    def of(kind: str) -> np.ndarray:
        return np.stack([flat_slots(batch, stored[f"rand_{kind}_{name}"]) for name in prediction_names(stored)]).astype(precision)

    return PointDraws(of("oversample"), of("extra"))


def flat_slots(batch: dict[str, Any], values: np.ndarray) -> np.ndarray:
    slots = to_slots(batch, values)
    return slots.reshape(-1, *slots.shape[2:])


def close(value: Any, expected: np.ndarray, tolerance: float, name: str) -> None:
    """max |value - expected| <= tolerance * max |expected|."""
    value, expected = np.asarray(value), np.asarray(expected)
    assert value.shape == expected.shape, f"{name}: shape {value.shape}, expected {expected.shape}"
    error, scale = np.abs(value - expected).max(), np.abs(expected).max()
    assert error <= tolerance * scale, f"{name}: error {error:.3g} of {scale:.3g}, tolerance {tolerance:g}"


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "float64"], indirect=True)
def test_the_training_pass(stored: Arrays, fixtures_dir: Path, precision: str):
    config, abstract = fixture_config(fixtures_dir), fixture_model(fixtures_dir)
    settings = json.loads((fixtures_dir / "config.json").read_text())
    batch = collate(stored, config.siglip.num_tokens)
    params = fixture_parameters(fixtures_dir, precision)
    pixels = stored["images"].astype(precision).transpose(0, 2, 3, 1)
    pixels_siglip = stored["images_clip"].astype(precision).transpose(0, 2, 3, 1)
    sampling = PointSampling(settings["num_points"])
    draws = stored_draws(stored, batch, precision)
    tolerance = FORWARD_TOLERANCE[precision]

    # The splice.
    np.testing.assert_array_equal(batch["labels"], stored["prep_labels"])
    np.testing.assert_array_equal(batch["attention_mask"], stored["prep_attention_mask"])
    np.testing.assert_array_equal(batch["seg"], stored["prep_seg_indices"])
    on_image = batch["image_start"][:, None] + np.arange(config.siglip.num_tokens)
    image_indices = np.zeros_like(stored["prep_image_indices"])
    np.put_along_axis(image_indices, on_image, 1, axis=1)
    np.testing.assert_array_equal(image_indices, stored["prep_image_indices"])

    arguments = {key: batch[key] for key in ("token_ids", "attention_mask", "image_start", "seg_positions")}

    def forward(params: Any) -> tuple[SegEarthR2Output, dict[str, jax.Array]]:
        model = bind(abstract, params)
        output = model(pixels=pixels, pixels_siglip=pixels_siglip, **arguments)
        embeds = model.prompt_embeddings(batch["token_ids"], model.image_tokens(pixels_siglip), batch["image_start"])
        hidden = model.phi(embeds, batch["attention_mask"]).hidden
        seg_hidden = jnp.take_along_axis(hidden, batch["seg_positions"][..., None], axis=1)
        parts = {"embeds": embeds, "hidden": hidden, "seg_hidden": seg_hidden, "seg_embedding": model.seg_projector(seg_hidden)}
        parts["logits"] = model.phi.logits(output.hidden)
        return output, parts

    def objective(params: Any) -> tuple[jax.Array, Any]:
        output, parts = forward(params)
        loss, terms = total_loss(output, batch, draws, LossWeights(), sampling, logits_of=bind(abstract, params).phi.logits)
        return loss, (output, parts, terms)

    (loss, (output, parts, terms)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)

    # Language.
    head, tail = stored["prep_inputs_embeds_head"], stored["prep_inputs_embeds_tail"]
    close(parts["embeds"][:, : head.shape[1]], head, EMBEDS_TOLERANCE, "prep_inputs_embeds_head")
    close(parts["embeds"][:, -tail.shape[1] :], tail, EMBEDS_TOLERANCE, "prep_inputs_embeds_tail")
    last = stored["last_hidden_tail"]
    close(parts["hidden"][:, -last.shape[1] :], last, tolerance, "last_hidden_tail")
    supervised = batch["labels"][:, 1:] != IGNORE_LABEL
    close(parts["logits"][:, :-1][supervised], stored["logits_supervised"], tolerance, "logits_supervised")
    valid = batch["mask_valid"]
    close(parts["seg_hidden"][valid][:, None], stored["seg_hidden"], tolerance, "seg_hidden")
    close(parts["seg_embedding"][valid][:, None], stored["seg_embedding"], tolerance, "seg_embedding")

    # Spatial attention supervision.
    flat_masks = batch["masks"].reshape(-1, *batch["masks"].shape[2:])
    sizes = np.repeat(batch["mask_size"], valid.shape[1], axis=0)
    target = attention_target(flat_masks, sizes, config.siglip.grid)
    np.testing.assert_array_equal(np.asarray(target)[valid.reshape(-1)], stored["attn_gt"].astype(bool))
    rows = output.attention_rows.reshape(output.attention_rows.shape[0], valid.size, -1)
    losses = attention_losses(rows, target, valid.reshape(-1))
    for layer in range(config.phi.num_layers):
        close(rows[layer][valid.reshape(-1)], stored[f"attn_rows_{layer}"], tolerance, f"attn_rows_{layer}")
        close(losses[layer], stored[f"attn_loss_{layer}"], LOSS_TOLERANCE[precision], f"attn_loss_{layer}")

    # Masks, the points they are judged at, and the losses there.
    names = prediction_names(stored)
    flat = output.mask_logits.reshape(len(names), valid.size, *output.mask_logits.shape[3:])
    points = select_points(flat, draws, sampling)
    bce, dice = mask_losses(flat, flat_masks, sizes, valid.reshape(-1), points)
    for i, name in enumerate(names):
        close(output.mask_logits[i][valid][:, None], stored[f"pred_masks_{name}"], tolerance, f"pred_masks_{name}")
        if precision == "float32":  # The points were chosen in float32; other logits may order two candidates differently.
            chosen, expected = np.asarray(points[i])[valid.reshape(-1)], stored[f"points_{name}"]
            for ours, theirs in zip(chosen, expected, strict=True):
                assert {tuple(p) for p in ours.tolist()} == {tuple(p) for p in theirs.tolist()}, f"points_{name}"
        suffix = "" if name == "final" else f"_{name.removeprefix('aux')}"
        close(bce[i], stored[f"unweighted_loss_mask{suffix}"], LOSS_TOLERANCE[precision], f"unweighted_loss_mask{suffix}")
        close(dice[i], stored[f"unweighted_loss_dice{suffix}"], LOSS_TOLERANCE[precision], f"unweighted_loss_dice{suffix}")

    # The total.
    for key, value in {
        "loss": loss,
        "loss_llm": terms["loss_llm"],
        "loss_mask_weighted": terms["loss_bce"],
        "loss_dice_weighted": terms["loss_dice"],
        "loss_attention_weighted": terms["loss_attention"],
    }.items():
        close(value, stored[key], LOSS_TOLERANCE[precision], key)

    check_gradients(fixtures_dir, grads, params, precision)


def check_gradients(fixtures_dir: Path, grads: Any, params: Any, precision: str) -> None:
    """Every stored gradient, and the norm of the gradient of every parameter; unused ones have none."""
    config = fixture_config(fixtures_dir)
    keys = key_map(config)
    ours = dict(keys.to_reference(jax.tree.map(np.asarray, grads)))
    stored = Arrays(fixtures_dir / "grads.npz", precision)
    names = [name for name in np.load(fixtures_dir / "grads.npz").files if not name.endswith("__f64")]
    for name in names:
        close(ours[name], stored[name], GRADIENT_TOLERANCE[precision], f"gradient of {name}")
    norms = json.loads((fixtures_dir / "grad_norms_f64.json").read_text())
    largest = max(norm for norm in norms.values() if norm is not None)
    for name, norm in norms.items():
        if norm is None:
            assert name not in ours, f"{name} has no gradient in the reference, but is a parameter here"
        else:
            error = abs(np.linalg.norm(ours[name].astype(np.float64)) - norm)
            # A gradient that is zero but for rounding is judged on the scale of the others.
            assert error <= GRADIENT_TOLERANCE[precision] * max(norm, 1e-6 * largest), (
                f"gradient norm of {name}: off by {error:.3g} of {norm:.3g}"
            )
    assert ours.keys() <= norms.keys()


def test_masks_of_mixed_sizes(fixtures_dir: Path, precision: str):
    """The reference pads masks of different sizes to a common one before sampling: our losses with that size as every mask's frame."""
    stored = Arrays(fixtures_dir / "criterion_mixed_sizes.npz", precision)
    count = len(stored["pred_masks"])
    logits = Arrays(fixtures_dir / "train_forward.npz", precision)["pred_masks_final"]
    np.testing.assert_allclose(logits, stored["pred_masks"], atol=1e-4)
    masks = [stored[f"mask_{i}"][0] for i in range(count)]
    common = np.max([mask.shape for mask in masks], axis=0)
    canvas = np.stack([np.pad(mask, [(0, common[0] - mask.shape[0]), (0, common[1] - mask.shape[1])]) for mask in masks])
    settings = json.loads((fixtures_dir / "config.json").read_text())
    draws = PointDraws(stored["rand_oversample"][None].astype(precision), stored["rand_extra"][None].astype(precision))
    logits = jnp.asarray(logits)[None, :, 0]
    points = select_points(logits, draws, PointSampling(settings["num_points"]))
    assert {tuple(p) for p in np.asarray(points[0], np.float32).reshape(-1, 2).tolist()} == {
        tuple(p) for p in stored["points"].astype(np.float32).reshape(-1, 2).tolist()
    }
    bce, dice = mask_losses(logits, canvas, np.tile(common, (count, 1)), np.ones(count, bool), points)
    close(bce[0], stored["loss_mask"], LOSS_TOLERANCE[precision], "loss_mask")
    close(dice[0], stored["loss_dice"], LOSS_TOLERANCE[precision], "loss_dice")
    # At its own size each target lies elsewhere: the padding is what moved it.
    own = np.array([mask.shape for mask in masks])
    assert abs(mask_losses(logits, canvas, own, np.ones(count, bool), points)[0][0] - bce[0]) > 1e-3
