"""A run as shapes and shardings only: what it would have on the devices of a mesh, with nothing allocated."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from data_pipeline.order import Slot
from data_pipeline.rows import LoaderConfig, collate, empty_row
from segearth_r2_jax.models.binding import Params, abstract_module, logical_axes, module_params
from segearth_r2_jax.models.segearth_r2 import SegEarthR2
from segearth_r2_jax.sharding.rules import batch_sharding
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.schedules import make_optimizer
from segearth_r2_jax.training.state import TrainState, initial_state, split_params, state_shardings


class AbstractRun(NamedTuple):
    """model: the network as shapes; axes: the logical axes of its parameters; state: what every step carries, as shapes that lie where
    `shardings` says."""

    model: SegEarthR2
    axes: Params
    optimizer: optax.GradientTransformation
    state: TrainState
    shardings: TrainState


def abstract_run(config: RunConfig, mesh: Mesh) -> AbstractRun:
    """The run that `config` describes on `mesh`: which parameters it trains and which it freezes, in which dtype, split how.

    Raises:
        UserError: `config.trainable` names no parameter.
    """
    model = abstract_module(lambda rngs: SegEarthR2(config.model, rngs=rngs))
    axes, optimizer = logical_axes(model), make_optimizer(config.optimizer, config.num_steps)
    trainable, frozen = split_params(module_params(model), config.trainable)
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.frozen_dtype), frozen)
    state = jax.eval_shape(functools.partial(initial_state, optimizer=optimizer), trainable, frozen)
    shardings = state_shardings(state, optimizer, axes, mesh)
    state = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, shardings)
    return AbstractRun(model, axes, optimizer, state, shardings)


def abstract_batch(config: LoaderConfig, mesh: Mesh, *, rows: int, tokens: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch of `rows` rows of `tokens` tokens as the loader yields it."""
    one = collate([empty_row(Slot(record=0, bucket=tokens), config, "")], config)
    place = batch_sharding(mesh)
    return {
        key: jax.ShapeDtypeStruct((rows, *value.shape[1:]), jax.dtypes.canonicalize_dtype(value.dtype), sharding=place)
        for key, value in one.items()
    }
