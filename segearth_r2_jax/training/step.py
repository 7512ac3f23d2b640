"""One training step: a pure function of (state, batch), compiled once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from segearth_r2_jax.inputs.image_processing import normalize_for_siglip, normalize_for_swin
from segearth_r2_jax.models.binding import Params, bind
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Output
from segearth_r2_jax.objectives.mask_losses import PointSampling, draw_points
from segearth_r2_jax.objectives.total import LossWeights, total_loss
from segearth_r2_jax.placement import placed
from segearth_r2_jax.sharding import rules
from segearth_r2_jax.training.state import TrainState, join_params

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a step computes.

    dtype: the compute dtype, "float32" or "bfloat16". regularize: dropout and stochastic depth, where the model has them.
    logits_chunk: positions of each row whose next-token logits exist at the same time; None: all. accumulate: parts of a batch that are
    computed one after the other; their gradients and losses, each normalised within its part, are averaged, as the reference's are.
    """

    weights: LossWeights = LossWeights()
    points: PointSampling = PointSampling()
    dtype: str = "float32"
    regularize: bool = False
    logits_chunk: int | None = None
    accumulate: int = 1
    seed: int = 0


class StepReport(NamedTuple):
    """metrics: scalars by name; mask_logits: [m, h, w], the final masks of the first image, for the picture in the log."""

    metrics: dict[str, jax.Array]
    mask_logits: jax.Array


def forward(model: SegEarthR2, batch: Batch, *, dtype: str, supervise_attention: bool, rng: jax.Array | None) -> SegEarthR2Output:
    """The training pass on a batch as the loader yields it (uint8 images; see `data_pipeline.loader`)."""
    return model(
        pixels=normalize_for_swin(batch["image"]).astype(dtype),
        pixels_siglip=normalize_for_siglip(batch["image_siglip"]).astype(dtype),
        token_ids=batch["token_ids"],
        attention_mask=batch["attention_mask"],
        image_start=batch["image_start"],
        seg_positions=batch["seg_positions"],
        supervise_attention=supervise_attention,
        rng=rng,
    )


def train_step(
    abstract_model: SegEarthR2, optimizer: optax.GradientTransformation, config: StepConfig
) -> Callable[[TrainState, Batch], tuple[TrainState, StepReport]]:
    """The step as a plain function; `compile_train_step` is what runs it."""

    def gradients(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[Params, dict[str, jax.Array], jax.Array]:
        """Gradients, losses and the final masks of the first image."""
        points_rng, model_rng = jax.random.split(rng)

        def objective(trainable: Params) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
            model = bind(abstract_model, join_params(trainable, state.frozen))
            output = forward(
                model,
                batch,
                dtype=config.dtype,
                supervise_attention=config.weights.attention > 0,
                rng=model_rng if config.regularize else None,
            )
            draws = draw_points(points_rng, output.mask_logits.shape[0], batch["mask_valid"].size, config.points)
            loss, terms = total_loss(
                output,
                batch,
                draws,
                config.weights,
                config.points,
                logits_of=model.phi.logits,
                logits_chunk=config.logits_chunk,
            )
            return loss, ({"loss": loss, **terms}, output.mask_logits[-1, 0].astype(jnp.float32))

        (_, (losses, masks)), grads = jax.value_and_grad(objective, has_aux=True)(state.trainable)
        return grads, losses, masks

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if config.accumulate == 1:
            grads, losses, masks = gradients(state, batch, rng)
        else:
            grads, losses, masks = _accumulated(functools.partial(gradients, state), batch, rng, config.accumulate)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        norms = {f"grad_norm/{part}": optax.tree.norm(tree) for part, tree in grads.items()}
        # What the language model reads of all rows: words and image tokens, without padding.
        tokens = jnp.sum(batch["attention_mask"], dtype=jnp.int32)
        metrics = {**losses, "grad_norm": optax.tree.norm(grads), **norms, "tokens": tokens}
        new_state = TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), state.frozen, opt_state)
        return new_state, StepReport(metrics, masks)

    return step


def _accumulated(
    gradients: Callable[[Batch, jax.Array], tuple[Params, dict[str, jax.Array], jax.Array]], batch: Batch, rng: jax.Array, parts: int
) -> tuple[Params, dict[str, jax.Array], jax.Array]:
    """The mean of `gradients` and losses over `parts` parts of the batch, one after the other; the first part's masks."""
    # Every part takes each `parts`-th row, so that the rows of a part are spread over the devices as those of the batch are.
    divided = {key: jnp.moveaxis(value.reshape(-1, parts, *value.shape[1:]), 1, 0) for key, value in batch.items()}

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, jax.Array]:
        grads, losses, masks = gradients(*part)
        return jax.tree.map(lambda a, b: a + b / parts, total, (grads, losses)), masks

    keys = jax.random.split(rng, parts)
    shapes = jax.eval_shape(gradients, {key: value[0] for key, value in divided.items()}, keys[0])[:2]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (grads, losses), masks = jax.lax.scan(add, zeros, (divided, keys))
    return grads, losses, masks[0]


def compile_train_step(
    abstract_model: SegEarthR2, optimizer: optax.GradientTransformation, config: StepConfig, mesh: Mesh, shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, StepReport]]:
    """The jitted step: state donated and sharded as `shardings` on the way in and out, batch and activations by `sharding.rules`."""
    step = train_step(abstract_model, optimizer, config)

    def placed_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        with placed(rules.placement(mesh)):
            return step(state, batch)

    return jax.jit(
        placed_step,
        in_shardings=(shardings, rules.batch_sharding(mesh)),
        out_shardings=(shardings, rules.replicated(mesh)),
        donate_argnums=0,
    )
