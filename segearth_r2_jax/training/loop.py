"""A training run: steps through the data, logs, saves, and continues where it was interrupted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data_pipeline.loader import Loader
from segearth_r2_jax.checkpoints.json_files import write_json
from segearth_r2_jax.checkpoints.manager import absolute, write_config
from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints
from segearth_r2_jax.errors import Preempted, UserError
from segearth_r2_jax.inputs.tokenizer import load_tokenizer, save_tokenizer
from segearth_r2_jax.sharding.mesh import make_mesh
from segearth_r2_jax.training.batches import Fetched, Prefetch, loader_config, open_loader
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.run_log import RunLog
from segearth_r2_jax.training.run_record import write_run_record
from segearth_r2_jax.training.sample_picture import SamplePictures
from segearth_r2_jax.training.schedules import learning_rate_schedule
from segearth_r2_jax.training.start import check, start
from segearth_r2_jax.training.state import TrainState, count
from segearth_r2_jax.training.step import Batch, StepReport, compile_train_step


def train(config: RunConfig, workdir: epath.PathLike, *, overrides: Sequence[str] = ()) -> None:
    """Runs `config` in `workdir` to its end. Called again with the same arguments it continues, from the newest whole checkpoint, with the
    losses that an uninterrupted run has.

    overrides: the command line's changes to the configuration file, for the record.

    Raises:
        UserError: the configuration does not fit the data, the checkpoint or the machine.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    mesh = make_mesh(config.mesh)
    check(config, len(tokenizer), mesh)
    loader = open_loader(config.data.shards, tokenizer, loader_config(config))
    workdir = absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    # One process speaks for all.
    leads = jax.process_index() == 0

    kept = {"keep": config.keep_checkpoints, "keep_best": config.keep_best, "best_metric": config.best_metric}
    with loader, TrainingCheckpoints(workdir, save_every=config.checkpoint_every, **kept) as checkpoints:
        started = start(config, workdir, mesh, checkpoints)
        state = started.state
        write_config(workdir, {"model": config.model.to_dict(), "template": config.data.template, "mask_canvas": config.data.mask_canvas})
        if leads:
            save_tokenizer(tokenizer, workdir / "tokenizer.json")
            write_run_record(workdir, config, mesh, overrides=overrides)
        if config.num_steps == 0:
            checkpoints.save(0, state.trainable, state.opt_state, force=True)
            checkpoints.wait()
            return
        if started.loader_state is not None:
            loader.set_state(started.loader_state)
        with contextlib.ExitStack() as stack:
            log = None
            if leads:
                first_step = int(state.step)
                print(_announcement(state, mesh, first_step), flush=True)
                log = RunLog(workdir, first_step=first_step, num_steps=config.num_steps, print_every=config.print_every)
                stack.enter_context(contextlib.closing(log))
            step = compile_train_step(started.abstract, started.optimizer, config.step, mesh, started.shardings)
            _loop(config, workdir, state, step, loader, mesh, log, checkpoints, SamplePictures(tokenizer, mesh))


class _Done(NamedTuple):
    """A step that was dispatched, and what is still to be read of it. rows: of the picture, where one is due."""

    number: int
    batch: Fetched
    report: StepReport
    rows: dict[str, jax.Array] | None


def _loop(
    config: RunConfig,
    workdir: epath.Path,
    state: TrainState,
    step: Callable[[TrainState, Batch], tuple[TrainState, StepReport]],
    loader: Loader,
    mesh: Mesh,
    log: RunLog | None,
    checkpoints: TrainingCheckpoints,
    pictures: SamplePictures,
) -> None:
    learning_rate = learning_rate_schedule(config.optimizer, config.num_steps)
    pending: _Done | None = None

    def read(done: _Done) -> dict[str, float]:
        """The numbers of a step; waits for its end."""
        metrics = {name: float(value) for name, value in jax.device_get(done.report.metrics).items()}
        _require_finite(done.number, metrics, done.batch.records, workdir)
        return metrics

    def write(done: _Done, metrics: dict[str, float]) -> None:
        if log is None:
            return
        log.write(done.number, {**metrics, "learning_rate": float(learning_rate(done.number - 1))})
        if done.rows is not None:
            (picture,) = pictures.draw(done.rows, done.report.mask_logits[None])
            log.picture(done.number, picture)

    def idle() -> bool:
        return pending is None or pending.report.metrics["loss"].is_ready()

    first = int(state.step) + 1
    with contextlib.closing(Prefetch(loader, mesh, config.num_steps + 1 - first)) as batches:
        for number in range(first, config.num_steps + 1):
            batch = batches.take(idle)
            state, report = step(state, batch.arrays)
            last = number == config.num_steps
            # One step behind: the numbers of a step are read while the next one runs.
            if pending is not None:
                write(pending, read(pending))
            shown = last or number % config.picture_every == 0
            pending = _Done(number, batch, report, pictures.rows(batch.arrays, 1) if shown else None)
            leaves = checkpoints.reached_preemption(number) and not last
            if last or leaves or number % config.checkpoint_every == 0:
                write(pending, read(pending))
                pending = None
                checkpoints.save(number, state.trainable, state.opt_state, metadata={"data": batch.loader_state}, force=last or leaves)
            if leaves:
                checkpoints.wait()
                raise Preempted(f"preempted: saved after step {number}; the same command continues there")
    checkpoints.wait()


def _require_finite(number: int, metrics: dict[str, float], records: np.ndarray, workdir: epath.Path) -> None:
    """Ends a run whose numbers have become infinite or undefined before they are saved; which records did it stands in a file."""
    if all(math.isfinite(metrics[name]) for name in ("loss", "grad_norm")):
        return
    path = workdir / f"not_finite_step_{number}_process_{jax.process_index()}.json"
    told = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    write_json(path, {"step": number, "metrics": told, "records": [int(index) for index in records]})
    raise UserError(f"step {number}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; {path} names the records of its batch")


def _announcement(state: TrainState, mesh: Mesh, first_step: int) -> str:
    words: list[Any] = [
        f"{count(state.trainable) / 1e6:.2f} M parameters trained, {count(state.frozen) / 1e6:.2f} M frozen, mesh {dict(mesh.shape)}"
    ]
    if first_step:
        words.append(f"continuing after step {first_step}")
    return ", ".join(words)
