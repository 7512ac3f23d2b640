"""What a training run carries from step to step."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import Params, flatten, unflatten
from segearth_r2_jax.sharding import rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """step: int32 scalar, the number of finished steps; trainable, frozen: nested dicts of parameters; opt_state: of `trainable` only."""

    step: jax.Array
    trainable: Params
    frozen: Params
    opt_state: optax.OptState


def split_params(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """(trainable, frozen): a parameter is trained if one of the regular expressions is found in its path ("phi/layers/self_attn/...").

    Raises:
        UserError: a pattern that matches no parameter, which would silently train nothing.
    """
    flat = flatten(params)
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in flat):
            raise UserError(f"trainable pattern {pattern!r} matches no parameter")
    trainable = {path: leaf for path, leaf in flat.items() if any(re.search(pattern, path) for pattern in patterns)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return unflatten(trainable), unflatten(frozen)


def join_params(trainable: Params, frozen: Params) -> Params:
    """The inverse of `split_params`."""
    return unflatten({**flatten(trainable), **flatten(frozen)})


def state_shardings(abstract: TrainState, optimizer: optax.GradientTransformation, axes: Params, mesh: Mesh) -> TrainState:
    """The sharding of every leaf of a state: parameters by `sharding.rules`, the optimizer's moments like their parameters.

    Left to itself, a jitted `optimizer.init` replicates the moments on every device.

    Args:
        abstract: the state as shapes.
        axes: logical axes of all parameters (`models.binding.logical_axes`).
    """
    flat_axes = flatten(axes)

    def of(params: Params) -> Params:
        return rules.shardings(params, unflatten({path: flat_axes[path] for path in flatten(params)}), mesh)

    trainable = of(abstract.trainable)
    whole = rules.replicated(mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, abstract.opt_state, trainable, transform_non_params=lambda _: whole
    )
    return TrainState(step=whole, trainable=trainable, frozen=of(abstract.frozen), opt_state=moments)


def initial_state(trainable: Params, frozen: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))


def count(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
