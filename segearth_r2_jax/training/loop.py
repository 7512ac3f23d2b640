"""A training run: steps through the data, logs, validates, saves, and continues where it was interrupted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
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
from segearth_r2_jax.training.profile import Profile
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.run_log import RunLog
from segearth_r2_jax.training.run_record import write_run_record
from segearth_r2_jax.training.sample_picture import SamplePictures
from segearth_r2_jax.training.schedules import learning_rate_schedule
from segearth_r2_jax.training.start import Started, check, start
from segearth_r2_jax.training.state import TrainState, count
from segearth_r2_jax.training.step import StepReport, compile_train_step
from segearth_r2_jax.training.throughput import Throughput
from segearth_r2_jax.training.validation import Validation
from segearth_r2_jax.training.wandb_log import require_wandb


def train(config: RunConfig, workdir: epath.PathLike, *, overrides: Sequence[str] = (), profile_steps: int = 0) -> None:
    """Runs `config` in `workdir` to its end. Called again with the same arguments it continues, from the newest whole checkpoint, with the
    losses that an uninterrupted run has.

    overrides: the command line's changes to the configuration file, for the record. profile_steps: how many steps of this start are
    traced into WORKDIR/profile.

    Raises:
        UserError: the configuration does not fit the data, the checkpoint or the machine, or the loss is lost.
        Preempted: the machine is asked for by others; the state is saved.
    """
    require_wandb(config.wandb_project)
    tokenizer = load_tokenizer(config.tokenizer)
    mesh = make_mesh(config.mesh)
    check(config, len(tokenizer), mesh)
    workdir = absolute(workdir)
    # One process speaks for all.
    leads = jax.process_index() == 0
    kept = {"keep": config.keep_checkpoints, "keep_best": config.keep_best, "best_metric": config.best_metric}
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(open_loader(config.data.shards, tokenizer, loader_config(config), mesh))
        validation = None
        if config.validation.every:
            validation = stack.enter_context(contextlib.closing(Validation(config, tokenizer, mesh)))
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = stack.enter_context(TrainingCheckpoints(workdir, save_every=config.checkpoint_every, **kept))
        started = start(config, workdir, mesh, checkpoints)
        throughput = Throughput(config, list(mesh.devices.flat))
        utilisation, record = throughput.describe()
        write_config(workdir, {"model": config.model.to_dict(), "template": config.data.template, "mask_canvas": config.data.mask_canvas})
        if leads:
            save_tokenizer(tokenizer, workdir / "tokenizer.json")
            write_run_record(workdir, config, mesh, overrides=overrides, more={"model_flop_utilisation": record})
        if config.num_steps == 0:
            checkpoints.save(0, started.state.trainable, started.state.opt_state, force=True)
            checkpoints.wait()
            return
        if started.loader_state is not None:
            loader.set_state(started.loader_state)
        log = profile = None
        if leads:
            first_step = int(started.state.step)
            print(_announcement(started.state, mesh, first_step), utilisation, sep="\n", flush=True)
            log = stack.enter_context(contextlib.closing(RunLog(workdir, config, first_step=first_step)))
            if profile_steps:
                profile = stack.enter_context(contextlib.closing(Profile(workdir / "profile", profile_steps, log.message)))
        _loop(config, workdir, started, mesh, loader, checkpoints, throughput, SamplePictures(tokenizer, mesh), validation, log, profile)


class _Done(NamedTuple):
    """A step that was dispatched, and what is still to be read of it. rows: of the picture, where one is due."""

    number: int
    batch: Fetched
    report: StepReport
    rows: dict[str, jax.Array] | None


def _loop(
    config: RunConfig,
    workdir: epath.Path,
    started: Started,
    mesh: Mesh,
    loader: Loader,
    checkpoints: TrainingCheckpoints,
    throughput: Throughput,
    pictures: SamplePictures,
    validation: Validation | None,
    log: RunLog | None,
    profile: Profile | None,
) -> None:
    """The steps. log and profile: of the process that speaks for all."""
    state = started.state
    step = compile_train_step(started.abstract, started.optimizer, config.step, mesh, started.shardings)
    judge = None if validation is None else validation.compile(started.abstract, started.shardings)
    learning_rate = learning_rate_schedule(config.optimizer, config.num_steps)
    pending: _Done | None = None

    def read(done: _Done) -> dict[str, float]:
        """The numbers of a step; waits for its end."""
        metrics = {name: float(value) for name, value in jax.device_get(done.report.metrics).items()}
        length = done.batch.arrays["token_ids"].shape[1]
        rates = throughput.step(tokens=metrics.pop("tokens"), length=length, starved=batches.starved)
        _require_finite(done.number, metrics, done.batch.records, workdir)
        return {**metrics, "learning_rate": float(learning_rate(done.number - 1)), **rates}

    def write(done: _Done, metrics: dict[str, float]) -> None:
        if log is None:
            return
        log.write(done.number, metrics)
        if done.rows is not None:
            (picture,) = pictures.draw(done.rows)
            log.picture("step", done.number, picture)

    def validate(number: int) -> dict[str, float]:
        judged = validation.run(judge, state, pictures)
        if log is not None:
            log.message(f"step {number}/{config.num_steps}  {judged.words}")
            for i, picture in enumerate(pictures.draw(judged.rows) if judged.rows else ()):
                log.picture(f"validation_{i + 1}", number, picture)
        return judged.metrics

    def idle() -> bool:
        return pending is None or pending.report.metrics["loss"].is_ready()

    first = int(state.step) + 1
    with contextlib.closing(Prefetch(loader, mesh, config.num_steps + 1 - first)) as batches:
        for number in range(first, config.num_steps + 1):
            batch = batches.take(idle)
            if profile is not None:
                profile.before(number + 1 - first, pending)
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, report = step(state, batch.arrays)
            if profile is not None:
                profile.after(number + 1 - first, report)
            last = number == config.num_steps
            # One step behind: the numbers of a step are read while the next one runs.
            if pending is not None:
                write(pending, read(pending))
            shown = last or number % config.picture_every == 0
            pending = _Done(number, batch, report, pictures.rows(batch.arrays, report.mask_logits[None], 1) if shown else None)
            leaves = checkpoints.reached_preemption(number) and not last
            saves = last or leaves or number % config.checkpoint_every == 0
            # Who has to leave has no time for it.
            judges = validation is not None and not leaves and (last or number % config.validation.every == 0)
            if saves or judges:
                metrics = read(pending)
                judged = validate(number) if judges else {}
                write(pending, metrics | judged)
                pending = None
                if saves:
                    if log is not None:
                        log.upload()
                    data = {"data": batch.loader_state}
                    checkpoints.save(number, state.trainable, state.opt_state, metadata=data, metrics=judged or None, force=last or leaves)
                throughput.restart(batches.starved)
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
