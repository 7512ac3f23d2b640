"""`segearth-r2 compile`: compiles a configuration's programs for a TPU topology that need not exist, and reports what they need."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from segearth_r2_jax.errors import UserError

if TYPE_CHECKING:
    import jax

    from segearth_r2_jax.ahead_of_time.programs import Program
    from segearth_r2_jax.ahead_of_time.report import Report
    from segearth_r2_jax.sharding.chips import Chip
    from segearth_r2_jax.sharding.mesh import MeshShape
    from segearth_r2_jax.training.run_config import RunConfig

HELP = "compile for a TPU topology without having it: does it fit, how much does it compute and exchange"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="a file of configs/, with get_config()")
    parser.add_argument("--topology", required=True, metavar="NAME", help="e.g. v5e:16x16, v6e:16x16, v5p:4x4x4 (chips in each direction)")
    parser.add_argument(
        "--mesh", metavar="AXES", help="e.g. data=16,fsdp=16,tensor=1 (default: the configuration's, or fsdp up to 16, the rest data)"
    )
    parser.add_argument("--program", choices=("train", "predict", "both"), default="train", help="what to compile (default: train)")
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--batch-per-device", type=_positive, metavar="N", help="images per device (default: from config.data.batch_size)")
    batch.add_argument("--find-batch", action="store_true", help="search the largest batch per device that fits")
    parser.add_argument("--tokens", type=_positive, metavar="N", help="length of the token rows (default: the longest bucket)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the report as JSON")
    parser.add_argument(
        "overrides", nargs="*", metavar="--config.KEY=VALUE", help="replace a field of the configuration, e.g. --config.step.accumulate=2"
    )


def run(args: argparse.Namespace) -> None:
    import jax

    # Whatever this machine has, nothing runs on it.
    jax.config.update("jax_platforms", "cpu")
    from segearth_r2_jax.ahead_of_time.topology import tpu_devices, usable_memory
    from segearth_r2_jax.cli.train import read_config_file
    from segearth_r2_jax.sharding.chips import chip_of
    from segearth_r2_jax.training.run_config import RunConfig

    if args.output is not None and not args.output.parent.is_dir():
        raise UserError(f"{args.output.parent}: no such folder to write the report to")
    config = RunConfig.from_config_dict(read_config_file(args.config, args.overrides))
    devices = tpu_devices(args.topology)
    kind = devices[0].device_kind
    topology = _Topology(args, config, devices, chip_of(kind), usable_memory(devices[0]))
    shape = _mesh_shape(args.mesh, config)
    memory = f"{topology.usable / 2**30:.2f} GiB of memory usable"
    print(f"{args.config} for {args.topology}: {len(devices)} devices ({kind}), {memory} on each", flush=True)

    if args.program in ("train", "both"):
        topology.train(shape, args.batch_per_device, args.tokens, find=args.find_batch)
    if args.program in ("predict", "both"):
        topology.predict(args.batch_per_device or 1, args.tokens, find=args.find_batch)
    if args.output is not None:
        print(f"\n{args.output}", flush=True)


@dataclasses.dataclass
class _Topology:
    """The devices of one topology, for which the programs of one configuration are compiled; `reports` are those so far."""

    args: argparse.Namespace
    config: RunConfig
    devices: list[jax.Device]
    chip: Chip | None
    usable: int
    reports: list[Report] = dataclasses.field(default_factory=list)

    def train(self, shape: MeshShape, rows: int | None, tokens: int | None, *, find: bool) -> None:
        from segearth_r2_jax.ahead_of_time.programs import row_shares, training_program
        from segearth_r2_jax.sharding.mesh import make_mesh

        mesh = make_mesh(shape, self.devices)
        tokens = tokens or max(self.config.data.token_buckets)

        def compile_rows(rows: int) -> Report:
            return self._compile(training_program(self.config, mesh, rows=rows, tokens=tokens))

        if find:
            self._search("train", lambda rows: [compile_rows(rows)], self.config.step.accumulate)
            return
        batch, shares = self.config.data.batch_size, row_shares(mesh)
        if rows is None and batch % shares:
            raise UserError(
                f"config.data.batch_size {batch} does not divide over {shares} devices with rows of their own; give --batch-per-device"
            )
        compile_rows(rows or batch // shares)

    def predict(self, rows: int, tokens: int | None, *, find: bool) -> None:
        from segearth_r2_jax.ahead_of_time.programs import inference_programs

        def compile_rows(rows: int) -> list[Report]:
            made = inference_programs(self.config.model, self.devices[0], rows=rows, prompt_tokens=tokens)
            return [self._compile(program) for program in made]

        if find:
            self._search("predict", compile_rows, 1)
        else:
            compile_rows(rows)

    def _compile(self, program: Program) -> Report:
        from segearth_r2_jax.ahead_of_time.report import compile_program
        from segearth_r2_jax.ahead_of_time.tables import report_lines

        report = compile_program(program, self.chip, self.usable)
        print("", *report_lines(report, self.chip), sep="\n", flush=True)
        self.reports.append(report)
        if self.args.output is not None:
            # After every program: a search may take an hour, and what it has found by then is not lost.
            self._write()
        return report

    def _search(self, name: str, compile_rows: Callable[[int], list[Report]], unit: int) -> None:
        from segearth_r2_jax.ahead_of_time.largest_batch import largest_batch

        tried = largest_batch(lambda rows: max(compile_rows(rows), key=lambda report: report.memory.needed), unit=unit)
        fitting = [rows for rows, report in tried.items() if report.memory.fits]
        failing = [rows for rows, report in tried.items() if not report.memory.fits]
        found = f"{max(fitting)} fits" if fitting else "none fits"
        print(f"\n{name}: largest batch per device: {found}" + (f", {min(failing)} does not" if failing else ", more may"), flush=True)

    def _write(self) -> None:
        import importlib.metadata
        import os
        import platform

        from segearth_r2_jax.checkpoints.json_files import write_json

        write_json(
            self.args.output,
            {
                "config": self.args.config,
                "overrides": self.args.overrides,
                "topology": self.args.topology,
                "devices": len(self.devices),
                "device_kind": self.devices[0].device_kind,
                "chip": None if self.chip is None else dataclasses.asdict(self.chip),
                "usable_memory": self.usable,
                "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "flax")}
                | {"python": platform.python_version()},
                "processors": os.cpu_count(),
                "programs": [report.to_dict() for report in self.reports],
            },
        )


def _mesh_shape(text: str | None, config: RunConfig) -> MeshShape:
    """The mesh that was asked for, or the configuration's, or, where that says nothing, the one for the topology."""
    from segearth_r2_jax.sharding.mesh import MeshShape

    names = [field.name for field in dataclasses.fields(MeshShape)]
    if text is None:
        return MeshShape(data=-1, fsdp=-1) if config.mesh == MeshShape() else config.mesh
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in names or not size.lstrip("-").isdigit() or name in sizes:
            form = ",".join(f"{name}=N" for name in names)
            raise UserError(f"--mesh {text}: expected {form}, each at most once, -1 for all that are left")
        sizes[name] = int(size)
    return MeshShape(**(dict.fromkeys(names, 1) | sizes))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)
