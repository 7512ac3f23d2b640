"""The state a run begins with: fresh, from another checkpoint, or where the run was interrupted."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from segearth_r2_jax.checkpoints.manager import keep_base, load_base, load_parameters
from segearth_r2_jax.checkpoints.start_weights import StartWeights
from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import Params, flatten, init_params, module_params, unflatten
from segearth_r2_jax.models.segearth_r2 import SegEarthR2
from segearth_r2_jax.sharding import rules
from segearth_r2_jax.training.abstract import abstract_run
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.state import TrainState, initial_state, split_params

DTYPES = ("float32", "bfloat16")
_LEAST = {
    "num_steps": 0,
    "checkpoint_every": 1,
    "print_every": 1,
    "picture_every": 1,
    "step.accumulate": 1,
    "step.logits_chunk": 1,
    "validation.every": 0,
    "validation.batches": 1,
    "validation.batch_size": 1,
    "validation.pictures": 0,
    "keep_checkpoints": 1,
    "keep_best": 0,
}

# In the paths of low-rank adapters.
_ADAPTER = "/lora_"


class Started(NamedTuple):
    """abstract: the network as shapes; shardings: of every leaf of `state`; loader_state: of the step that the run continues after, or
    None where it begins."""

    abstract: SegEarthR2
    optimizer: optax.GradientTransformation
    state: TrainState
    shardings: TrainState
    loader_state: dict[str, Any] | None


def check(config: RunConfig, tokens: int, mesh: Mesh) -> None:
    """Says what cannot work before anything is allocated.

    Args:
        tokens: how many the tokenizer has.

    Raises:
        UserError: a number or dtype is out of range; the tokenizer does not fit the model, or a batch the mesh; shards are missing;
            intervals contradict each other.
    """
    for name, least in _LEAST.items():
        value = operator.attrgetter(name)(config)
        if value is not None and value < least:
            raise UserError(f"config.{name} is {value}; expected at least {least}")
    for name in ("step.dtype", "frozen_dtype"):
        if (value := operator.attrgetter(name)(config)) not in DTYPES:
            raise UserError(f"config.{name} is {value!r}; expected one of {', '.join(DTYPES)}")
    rows = min(config.model.phi.vocab_size, config.model.phi.embed_rows)
    if tokens > rows:
        raise UserError(f"{config.tokenizer}: {tokens} tokens do not fit the model's {rows} word embeddings")
    if not config.data.shards:
        raise UserError("config.data.shards is empty: name the folder that data_pipeline.build_shards made")
    shares = math.prod(mesh.shape[axis] for axis in rules.batch_sharding(mesh).spec[0])
    if config.data.batch_size % (shares * config.step.accumulate):
        raise UserError(
            f"config.data.batch_size {config.data.batch_size} is not a multiple of {shares * config.step.accumulate}: {shares} devices "
            f"with rows of their own x {config.step.accumulate} parts (config.step.accumulate)"
        )
    validation = config.validation
    if validation.every:
        size = validation.batch_size or config.data.batch_size
        if size % shares:
            raise UserError(f"config.validation.batch_size {size} is not a multiple of {shares}, the devices with rows of their own")
    if config.keep_best and not validation.every:
        raise UserError(f"config.keep_best is {config.keep_best}, but config.validation.every is 0: nothing would say which are the best")
    if config.keep_best and config.checkpoint_every % validation.every:
        raise UserError(
            f"config.keep_best is {config.keep_best}, but not every checkpoint is validated: config.checkpoint_every "
            f"{config.checkpoint_every} is not a multiple of config.validation.every {validation.every}"
        )


def start(config: RunConfig, workdir: epath.Path, mesh: Mesh, checkpoints: TrainingCheckpoints) -> Started:
    """The state on the mesh: the newest whole step of `workdir` if there is one, otherwise step 0.

    A run that continues reads nothing but its own work directory. Parameters that training does not change are written there once.
    """

    def make(rngs: nnx.Rngs) -> SegEarthR2:
        return SegEarthR2(config.model, rngs=rngs)

    abstract, axes, optimizer, wanted, sharded = abstract_run(config, mesh)
    restored = checkpoints.restore(wanted.trainable, wanted.opt_state)
    base = load_base(workdir, wanted.frozen) if wanted.frozen and restored is not None else None
    if restored is not None and (base is not None or not wanted.frozen):
        trainable, frozen = restored.trainable, base or {}
    else:
        shapes = module_params(abstract)
        placed = rules.shardings(shapes, axes, mesh)
        params = _first_params(config, make, shapes, placed)
        trainable, frozen = split_params(params, config.trainable)
        frozen = jax.tree.map(lambda leaf: leaf.astype(config.frozen_dtype), frozen)
        if frozen:
            keep_base(workdir, frozen)
    if restored is None:
        # Donated: the parameters become part of the state instead of being copied into it.
        first = functools.partial(initial_state, optimizer=optimizer)
        state = jax.jit(first, out_shardings=sharded, donate_argnums=(0, 1))(trainable, frozen)
        return Started(abstract, optimizer, state, sharded, None)
    step = jax.device_put(jnp.asarray(restored.step, jnp.int32), sharded.step)
    state = TrainState(step, restored.trainable, frozen, restored.optimizer)
    return Started(abstract, optimizer, state, sharded, restored.metadata.get("data"))


def _first_params(config: RunConfig, make: Callable[[nnx.Rngs], SegEarthR2], shapes: Params, placed: Params) -> Params:
    """All parameters at step 0, in float32. Low-rank adapters come from `initial_adapter`, or from `initial_checkpoint` if it has any;
    otherwise they are fresh."""
    flat_placed = flatten(placed)
    wanted = {path: jax.ShapeDtypeStruct(shape.shape, jnp.float32, sharding=flat_placed[path]) for path, shape in flatten(shapes).items()}
    has_place = any(_ADAPTER in path for path in wanted)
    if config.initial_adapter is not None and not has_place:
        raise UserError("config.initial_adapter: the model has no low-rank adapters (config.model.phi.lora.rank is 0)")
    loaded: dict[str, jax.Array] = {}
    if config.initial_checkpoint is not None:
        weights = StartWeights(config.initial_checkpoint)
        own = config.initial_adapter is None and weights.has_adapters()
        select = f"^(?!.*{_ADAPTER})" if has_place and not own else ""
        loaded |= flatten(weights.load(unflatten(wanted), "float32", select=select))
    if config.initial_adapter is not None:
        loaded |= flatten(load_parameters(config.initial_adapter, unflatten(wanted), "float32", select=_ADAPTER))
    fresh = {path: place for path, place in flat_placed.items() if path not in loaded}
    made = flatten(init_params(make, config.seed, unflatten(fresh))) if fresh else {}
    return unflatten({path: loaded[path] if path in loaded else made[path] for path in wanted})
