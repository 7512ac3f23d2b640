"""`segearth-r2 convert`: weights between PyTorch and this project, either way, bit for bit."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "convert weights: PyTorch (model.safetensors, config.json) <-> a checkpoint folder, whichever the source is not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from segearth_r2_jax.inputs.conversation import TEMPLATES

    parser.add_argument("--source", required=True, type=Path, metavar="PATH", help="a folder of either kind, or a .safetensors file")
    parser.add_argument("--target", required=True, type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32", "float64"), help="store the weights in this type (default: as they are)"
    )
    parser.add_argument(
        "--template",
        choices=sorted(TEMPLATES),
        help="the prompt that PyTorch weights were trained with (default: what the source says, or the reference's own)",
    )
    parser.add_argument("--force", action="store_true", help="replace the target if it exists")


def run(args: argparse.Namespace) -> None:
    from segearth_r2_jax.checkpoints.convert import checkpoint_kind, export_reference, import_reference
    from segearth_r2_jax.errors import UserError

    if checkpoint_kind(args.source) == "torch":
        report = import_reference(args.source, args.target, dtype=args.dtype, template=args.template, force=args.force)
        kinds = "PyTorch -> checkpoint folder"
    else:
        if args.template is not None:
            raise UserError("--template: only for PyTorch weights; this source's config.json says which it is")
        report = export_reference(args.source, args.target, dtype=args.dtype, force=args.force)
        kinds = "checkpoint folder -> PyTorch"
    print(f"{args.source} -> {args.target} ({kinds})", *report.lines(), sep="\n")
