"""Builds TFRecord shards on an Apache Beam runner: for data sets with millions of images. Needs the extra `beam`.

    python -m data_pipeline.beam_build --source lasers --input DIR --output DIR [the options of build_shards] [-- BEAM OPTIONS]

The same checks, the same bytes and the same manifest as `python -m data_pipeline.build_shards`, whose work is handed to Beam task by task.
What stands behind `--` goes to Beam (`-- --runner FlinkRunner --flink_master HOST:8081`); without it Beam runs on this machine. Input and
output have to be folders that every worker sees under the same name: a shared file system, or a bucket that is mounted. A task travels as
a line of numbers; a worker reads the annotation files itself, once, so that the pipeline stays small however large the data set is.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.annotation import Annotation, Rejection
from data_pipeline.build_shards import RESUMES, add_arguments, run_build
from data_pipeline.command_line import run_command
from data_pipeline.shard_task import InputChanged, ShardTask
from data_pipeline.sources.registry import get_source
from data_pipeline.validation import CheckTask, Mapper, read_rows
from segearth_r2_jax.errors import UserError

_TASK_KINDS = {kind.__name__: kind for kind in (CheckTask, ShardTask)}
_ERROR_KINDS = {kind.__name__: kind for kind in (UserError, InputChanged)}


def beam_mapper(source: str, folder: Path, scratch: Path, beam_options: Sequence[str] = ()) -> Mapper:
    """A mapper that runs tasks as a Beam pipeline.

    Args:
      source, folder: the data set whose rows the tasks hold.
      scratch: a folder that every worker sees, for the lines of tasks and of results; they are removed by the caller.
      beam_options: arguments for Beam, such as `--runner`.
    Raises UserError if Beam is not installed.
    """
    try:
        import apache_beam as beam
    except ImportError:
        raise UserError("apache-beam is not installed: pip install 'segearth-r2-jax[beam]'") from None
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

    options = PipelineOptions(list(beam_options))
    options.view_as(SetupOptions).save_main_session = False

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        if not tasks:
            return
        place = Path(tempfile.mkdtemp(dir=scratch))
        lines = (json.dumps([number, *pack(task)]) for number, task in enumerate(tasks))
        (place / "tasks").write_text("".join(f"{line}\n" for line in lines))
        work = functools.partial(_work, function=function, source=source, folder=str(folder))
        try:
            with beam.Pipeline(options=options) as pipeline:
                (
                    pipeline
                    | beam.io.ReadFromText(str(place / "tasks"))
                    # Without it the tasks of one file would be one worker's.
                    | beam.Reshuffle()
                    | beam.Map(work)
                    | beam.io.WriteToText(str(place / "results"))
                )
        except Exception as error:  # A runner that does not exist or cannot be reached is met in many ways.
            raise UserError(f"Beam: {' '.join(str(error).split()) or type(error).__name__:.300}") from error
        found = [json.loads(line) for file in place.glob("results*") for line in file.read_text().splitlines()]
        for _, error, result in sorted(found, key=lambda entry: entry[0]):
            if error is not None:
                kind, message = error
                raise _ERROR_KINDS[kind](message)
            yield result

    return run


def pack(task: CheckTask | ShardTask) -> tuple[str, dict[str, Any]]:
    """A task as JSON values: the numbers of its rows in place of the rows."""
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.name != "rows"}
    return type(task).__name__, {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}


def unpack(kind: str, fields: dict[str, Any], source: str, folder: str) -> CheckTask | ShardTask:
    """The task that `pack` packed, its rows read from the data set; InputChanged if they are not there any more."""
    places = tuple((split, number) for split, number in fields["places"])
    rows = []
    for split, number in places:
        annotations = _annotations(source, folder, split)
        if number >= len(annotations) or isinstance(annotations[number], Rejection):
            raise InputChanged(f"{folder}: the annotations of {split!r} have changed since they were checked; run the command again")
        rows.append(annotations[number])
    values = {name: tuple(map(_tuple, value)) if isinstance(value, list) else value for name, value in fields.items()}
    if "path" in values:
        values["path"] = Path(values["path"])
    return _TASK_KINDS[kind](**{**values, "places": places, "rows": tuple(rows)})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@functools.lru_cache(maxsize=4)
def _annotations(source: str, folder: str, split: str) -> list[Annotation | Rejection]:
    """Read once per worker process."""
    return list(read_rows(get_source(source), Path(folder), split))


def _work(line: str, *, function: Callable[[Any], Any], source: str, folder: str) -> str:
    """Number, error and result of one task, as a line. An error that the user may see travels as a result: Beam would try again."""
    number, kind, fields = json.loads(line)
    try:
        return json.dumps([number, None, function(unpack(kind, fields, source, folder))])
    except UserError as error:
        return json.dumps([number, [type(error).__name__, str(error)], None])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, beam_options = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.beam_build",
        description="Builds TFRecord shards from a data set on an Apache Beam runner.",
        epilog="What stands behind -- goes to Beam, as in: -- --runner FlinkRunner",
    )
    add_arguments(parser)
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="a folder that every worker sees (default: beside the output)")
    options = parser.parse_args(own)
    command = shlex.join(["python", "-m", "data_pipeline.beam_build", *given])
    return run_command(lambda: _build(options, beam_options, command), RESUMES)


def _build(options: argparse.Namespace, beam_options: Sequence[str], command: str) -> None:
    if options.output is None:
        raise UserError("--output is missing: the folder to write the shards to")
    scratch = options.scratch or options.output.resolve().parent
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=scratch, prefix="beam-")
    except OSError as error:
        raise UserError(f"{scratch}: cannot be written to ({error.strerror})") from None
    with place as name:
        run_build(options, command, mapper=beam_mapper(options.source, options.input, Path(name), beam_options))


if __name__ == "__main__":
    # Workers look functions up by the name of their module, which must not be __main__.
    from data_pipeline.beam_build import main as command

    sys.exit(command())
