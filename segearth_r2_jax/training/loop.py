"""A training run: sets up the state on the mesh, steps through the data, logs, saves, and continues where it was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipeline.loader import Loader, LoaderConfig, open_shards
from segearth_r2_jax.checkpoints.json_files import write_json
from segearth_r2_jax.checkpoints.manager import TrainingCheckpoints, has_base, load_parameters, save_base, write_config
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.tokenizer import load_tokenizer, save_tokenizer
from segearth_r2_jax.models.binding import Params, abstract_module, flatten, init_params, logical_axes, module_params, unflatten
from segearth_r2_jax.models.segearth_r2 import SegEarthR2
from segearth_r2_jax.sharding.mesh import make_mesh
from segearth_r2_jax.sharding.rules import batch_sharding, shardings
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.run_log import RunLog
from segearth_r2_jax.training.sample_picture import sample_picture
from segearth_r2_jax.training.schedules import learning_rate_schedule, make_optimizer
from segearth_r2_jax.training.state import TrainState, count, initial_state, split_params, state_shardings
from segearth_r2_jax.training.step import Batch, StepReport, compile_train_step

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def train(config: RunConfig, workdir: Path) -> None:
    """Runs `config` in `workdir` to its end. Called again with the same arguments it continues, from the newest whole checkpoint, with the
    losses that an uninterrupted run has.

    Raises:
        UserError: the configuration does not fit the data, the checkpoint or the machine.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    _check(config, len(tokenizer))
    mesh = make_mesh(config.mesh)
    loader = Loader(
        open_shards(config.data.shards),
        tokenizer,
        loader_config(config),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    def make(rngs: nnx.Rngs) -> SegEarthR2:
        return SegEarthR2(config.model, rngs=rngs)

    abstract = abstract_module(make)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    workdir.mkdir(parents=True, exist_ok=True)

    with loader, TrainingCheckpoints(workdir, keep=config.keep_checkpoints, save_every=config.checkpoint_every) as checkpoints:
        state, sharded = _start(config, workdir, make, abstract, optimizer, mesh)
        write_config(workdir, {"model": config.model.to_dict(), "template": config.data.template, "mask_canvas": config.data.mask_canvas})
        if jax.process_index() == 0:
            save_tokenizer(tokenizer, workdir / "tokenizer.json")
            _record(config, workdir)
        if config.num_steps == 0:
            checkpoints.save(0, state.trainable, state.opt_state, force=True)
            checkpoints.wait()
            return
        restored = checkpoints.restore(_abstract(state.trainable), _abstract(state.opt_state))
        if restored is not None:
            if restored.step > 0:
                loader.set_state(restored.metadata["data"])
            step = jax.device_put(jnp.asarray(restored.step, jnp.int32), sharded.step)
            state = dataclasses.replace(state, step=step, trainable=restored.trainable, opt_state=restored.optimizer)
        first_step = 0 if restored is None else restored.step
        # One process speaks for all.
        leads = jax.process_index() == 0
        words = (
            f"{count(state.trainable) / 1e6:.2f} M parameters trained, {count(state.frozen) / 1e6:.2f} M frozen, "
            f"mesh {dict(mesh.shape)}" + (f", continuing after step {first_step}" if first_step else "")
        )
        with contextlib.ExitStack() as stack:
            log = None
            if leads:
                print(words, flush=True)
                log = RunLog(workdir, first_step=first_step, num_steps=config.num_steps, print_every=config.print_every)
                stack.enter_context(contextlib.closing(log))
            step = compile_train_step(abstract, optimizer, config.step, mesh, sharded)
            _loop(config, workdir, state, step, loader, mesh, log, checkpoints, functools.partial(_picture, tokenizer))


def loader_config(config: RunConfig) -> LoaderConfig:
    """The loader's configuration: what the run says of its data, and the sizes that the model asks for."""
    return LoaderConfig(
        batch_size=config.data.batch_size,
        image_size=config.model.image_size,
        siglip_size=config.model.siglip.image_size,
        num_image_tokens=config.model.siglip.num_tokens,
        token_buckets=config.data.token_buckets,
        max_masks=config.data.max_masks,
        mask_canvas=config.data.mask_canvas,
        template=config.data.template,
        seed=config.seed,
        workers=config.data.workers,
        on_corrupt=config.data.on_corrupt,
    )


def _loop(
    config: RunConfig,
    workdir: Path,
    state: TrainState,
    step: Callable[[TrainState, Batch], tuple[TrainState, StepReport]],
    loader: Loader,
    mesh: Mesh,
    log: RunLog | None,
    checkpoints: TrainingCheckpoints,
    picture: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray],
) -> None:
    learning_rate = learning_rate_schedule(config.optimizer, config.num_steps)
    by_row = batch_sharding(mesh)
    pending: tuple[int, dict[str, np.ndarray], StepReport] | None = None

    def report(number: int, batch: dict[str, np.ndarray], made: StepReport) -> None:
        metrics = {name: float(value) for name, value in made.metrics.items()}
        _require_finite(number, metrics, batch["record_index"], workdir)
        if log is None:
            return
        log.write(number, {**metrics, "learning_rate": float(learning_rate(number - 1))})
        if number % config.picture_every == 0 or number == config.num_steps:
            log.picture(number, picture(batch, np.asarray(made.mask_logits)))

    for number in range(int(state.step) + 1, config.num_steps + 1):
        host_batch = next(loader)
        batch = {key: jax.make_array_from_process_local_data(by_row, value) for key, value in host_batch.items()}
        state, made = step(state, batch)
        # One step behind: the numbers of a step are read while the next one runs.
        if pending is not None:
            report(*pending)
        pending = (number, host_batch, made)
        last = number == config.num_steps
        if last or number % config.checkpoint_every == 0:
            report(*pending)
            pending = None
            checkpoints.save(number, state.trainable, state.opt_state, metadata={"data": loader.get_state()}, force=last)
    checkpoints.wait()


def _require_finite(number: int, metrics: dict[str, float], records: np.ndarray, workdir: Path) -> None:
    """Ends a run whose numbers have become infinite or undefined before they are saved; which records did it stands in a file."""
    if all(math.isfinite(metrics[name]) for name in ("loss", "grad_norm")):
        return
    path = workdir / f"not_finite_step_{number}_process_{jax.process_index()}.json"
    told = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    write_json(path, {"step": number, "metrics": told, "records": [int(index) for index in records]})
    raise UserError(f"step {number}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; {path} names the records of its batch")


def _start(
    config: RunConfig,
    workdir: Path,
    make: Callable[[nnx.Rngs], SegEarthR2],
    abstract: SegEarthR2,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[TrainState, TrainState]:
    """The state of step 0 on the mesh and its shardings; parameters that training does not change are written once."""
    axes = logical_axes(abstract)
    shapes = module_params(abstract)
    placed = shardings(shapes, axes, mesh)
    if config.initial_checkpoint is None:
        params = init_params(make, config.seed, placed)
    else:
        params = _load(config.initial_checkpoint, make, config.seed, shapes, placed)
    trainable, frozen = split_params(params, config.trainable)
    frozen = jax.tree.map(lambda leaf: leaf.astype(config.frozen_dtype), frozen)
    if frozen and not has_base(workdir):
        save_base(workdir, frozen)
    first = functools.partial(initial_state, optimizer=optimizer)
    sharded = state_shardings(jax.eval_shape(first, trainable, frozen), optimizer, axes, mesh)
    # Donated: the parameters become part of the state instead of being copied into it.
    return jax.jit(first, out_shardings=sharded, donate_argnums=(0, 1))(trainable, frozen), sharded


def _load(checkpoint: str, make: Callable[[nnx.Rngs], SegEarthR2], seed: int, shapes: Params, placed: Params) -> Params:
    """The checkpoint's parameters in float32, with fresh low-rank adapters: a checkpoint to start from has none."""
    flat_shapes, flat_placed = flatten(shapes), flatten(placed)
    adapters = {path: sharding for path, sharding in flat_placed.items() if "/lora_" in path}
    wanted = {
        path: jax.ShapeDtypeStruct(shape.shape, jnp.float32, sharding=flat_placed[path])
        for path, shape in flat_shapes.items()
        if path not in adapters
    }
    params = flatten(load_parameters(checkpoint, unflatten(wanted), "float32"))
    if adapters:
        params |= flatten(init_params(make, seed, unflatten(adapters)))
    return unflatten(params)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def _check(config: RunConfig, tokens: int) -> None:
    rows = min(config.model.phi.vocab_size, config.model.phi.embed_rows)
    if tokens > rows:
        raise UserError(f"{config.tokenizer}: {tokens} tokens do not fit the model's {rows} word embeddings")
    if not config.data.shards:
        raise UserError("config.data.shards is empty: name the folder that data_pipeline.build_shards made")


def _picture(tokenizer: Any, batch: dict[str, np.ndarray], mask_logits: np.ndarray) -> np.ndarray:
    words = batch["token_ids"][0]
    return sample_picture(
        batch["image"][0],
        batch["masks"][0][batch["mask_valid"][0]],
        tuple(batch["mask_frame"][0]),
        mask_logits[batch["mask_valid"][0]],
        tokenizer.decode(words[words >= 0], skip_special_tokens=False),
    )


def _record(config: RunConfig, workdir: Path) -> None:
    """What was run, and with what."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    write_json(
        workdir / "run.json",
        {"config": config.to_dict(), "python": platform.python_version(), "versions": versions, "devices": [str(d) for d in jax.devices()]},
    )
