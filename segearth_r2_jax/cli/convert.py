"""`segearth-r2 convert`: weights between PyTorch and this project, either way, bit for bit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segearth_r2_jax.checkpoints.conversion_report import Report
    from segearth_r2_jax.checkpoints.export import Export
    from segearth_r2_jax.checkpoints.reference_import import Import
    from segearth_r2_jax.checkpoints.sources.reference_checkpoint import ReferenceCheckpoint
    from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
    from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

HELP = "convert weights: PyTorch <-> a checkpoint folder, whichever the source is not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from segearth_r2_jax.inputs.conversation import TEMPLATES

    parser.add_argument(
        "--source",
        type=Path,
        metavar="PATH",
        help="PyTorch: a folder of safetensors or .bin files, a PEFT adapter, a DeepSpeed run; or a checkpoint folder",
    )
    parser.add_argument("--target", type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--base", type=Path, metavar="PATH", help="the weights that the source's adapter or partial weights belong onto")
    parser.add_argument("--unmerge", type=Path, metavar="DIR", help="the PEFT adapter that was merged into the source: take it out again")
    parser.add_argument("--lora-alpha", type=float, metavar="X", help="of adapters whose source does not say it (DeepSpeed)")
    parser.add_argument("--lora-rank", type=int, metavar="R", help="refuse adapters of another rank")
    parser.add_argument(
        "--assemble", action="store_true", help="make the starting point of training from --mipha, --mask2former and perhaps --siglip"
    )
    parser.add_argument("--mipha", type=Path, metavar="DIR", help="Mipha-3B: language model, SigLIP and projector")
    parser.add_argument("--mask2former", type=Path, metavar="FILE", help="detectron2's model_final_54b88a.pkl: Swin-B and the mask decoder")
    parser.add_argument("--siglip", type=Path, metavar="DIR", help="SigLIP, instead of the one in --mipha")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters that no source has (default: 0)")
    parser.add_argument(
        "--format",
        choices=("merged", "adapter"),
        help="what to write for PyTorch: all weights, adapters merged (default), or the adapter and what is trained beside it",
    )
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32", "float64"), help="store the weights in this type (default: as they are)"
    )
    parser.add_argument(
        "--template",
        choices=sorted(TEMPLATES),
        help="the prompt that PyTorch weights were trained with (default: what the source says, or the reference's own)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done; write nothing")
    parser.add_argument("--verify", action="store_true", help="run both networks on one input afterwards and compare them (needs PyTorch)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what became of every key as JSON (also for --dry-run)")
    parser.add_argument("--force", action="store_true", help="replace the target if it exists")


def run(args: argparse.Namespace) -> None:
    from segearth_r2_jax.errors import UserError

    if args.target is None and not args.dry_run:
        raise UserError("--target: expected the folder to write (or --dry-run)")
    if args.assemble == (args.source is not None):
        raise UserError("expected either --source, or --assemble with --mipha and --mask2former")
    for name in ("mipha", "mask2former", "siglip"):
        if getattr(args, name) is not None and not args.assemble:
            raise UserError(f"--{name}: only with --assemble")
    if args.unmerge is not None and (args.assemble or args.base is not None):
        raise UserError("--unmerge: only with merged weights as --source, without --base")
    if args.assemble or _is_pytorch(args.source):
        _from_pytorch(args)
    else:
        _to_pytorch(args)


def _is_pytorch(source: Path) -> bool:
    """Whether PyTorch weights lie at `source`, not a checkpoint folder of this project.

    Raises:
        UserError: neither, or both.
    """
    from segearth_r2_jax.checkpoints import manager
    from segearth_r2_jax.checkpoints.sources.open import is_source
    from segearth_r2_jax.errors import UserError

    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    ours = source.is_dir() and (manager.has_base(source) or manager.latest_step(source) is not None)
    theirs = is_source(source)
    if ours and theirs:
        raise UserError(f"{source}: holds PyTorch weights and an Orbax checkpoint; expected one of them")
    if not ours and not theirs:
        raise UserError(f"{source}: no weights there; expected PyTorch's (docs/convert.md lists which) or an Orbax checkpoint")
    return theirs


def _from_pytorch(args: argparse.Namespace) -> None:
    from segearth_r2_jax.checkpoints.reference_import import Import
    from segearth_r2_jax.errors import UserError

    if args.format is not None:
        raise UserError("--format: only for a checkpoint folder as --source")
    if args.verify and args.dry_run:
        raise UserError("--verify: there is nothing to compare with --dry-run")
    _require_torch(args)
    incoming = Import(_open(args), dtype=args.dtype, template=args.template)
    _carry(args, incoming)
    if args.verify:
        _verify(args, incoming.checkpoint.tensors, incoming.config, args.target)


def _open(args: argparse.Namespace) -> ReferenceCheckpoint:
    from segearth_r2_jax.checkpoints.sources.assemble import assemble
    from segearth_r2_jax.checkpoints.sources.open import open_source
    from segearth_r2_jax.checkpoints.sources.unmerge import unmerged
    from segearth_r2_jax.errors import UserError

    if args.unmerge is not None:
        return unmerged(open_source(args.source), args.unmerge, lora_alpha=args.lora_alpha)
    if not args.assemble:
        return open_source(args.source, base=args.base, lora_alpha=args.lora_alpha, lora_rank=args.lora_rank)
    for name in ("mipha", "mask2former"):
        if getattr(args, name) is None:
            raise UserError(f"--assemble: expected --{name} as well")
    return assemble(args.mipha, args.mask2former, siglip=args.siglip, seed=args.seed)


def _to_pytorch(args: argparse.Namespace) -> None:
    from segearth_r2_jax.checkpoints.export import Export
    from segearth_r2_jax.checkpoints.manager import read_model_config
    from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
    from segearth_r2_jax.errors import UserError

    for name in ("template", "base", "unmerge", "lora_alpha", "lora_rank"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: only for PyTorch weights; {args.source} is a checkpoint folder")
    if args.verify and (args.dry_run or args.format == "adapter"):
        raise UserError(f"--verify: there is nothing to compare with {'--dry-run' if args.dry_run else '--format adapter'}")
    _require_torch(args)
    _carry(args, Export(args.source, form=args.format or "merged", dtype=args.dtype))
    if args.verify:
        _verify(args, read_state_dict(args.target), read_model_config(args.source), args.source)


def _carry(args: argparse.Namespace, weights: Import | Export) -> None:
    """Writes the target, or only says what would be written."""
    if args.dry_run:
        report = weights.report()
    else:
        with _progress(weights.nbytes) as written:
            report = weights.write(args.target, force=args.force, written=written)
    _show(args, report)


def _require_torch(args: argparse.Namespace) -> None:
    """Better said now than after the conversion."""
    if args.verify:
        from segearth_r2_jax.checkpoints.verify_torch import require_torch

        require_torch()


def _verify(args: argparse.Namespace, tensors: Mapping[str, LazyTensor], config: SegEarthR2Config, checkpoint: Path) -> None:
    from segearth_r2_jax.checkpoints.verify_torch import verify

    print(*verify(tensors, config, checkpoint, stored_as=args.dtype).lines(), sep="\n")


def _show(args: argparse.Namespace, report: Report) -> None:
    from segearth_r2_jax.checkpoints.json_files import write_json

    print(f"{args.source or 'assembled'} -> {args.target or '(nothing written)'}", *report.lines(), sep="\n")
    if args.report is not None:
        write_json(args.report, report.to_dict())


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every tenth in a log."""
    from tqdm import tqdm

    done = 0

    def told(size: int) -> None:
        nonlocal done
        before, done = done, done + size
        bar.update(size)
        if bar.disable and total > 1e9 and before * 10 // total < done * 10 // total:
            print(f"converted {done / 1e9:.1f} of {total / 1e9:.1f} GB", file=sys.stderr, flush=True)

    with tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=None) as bar:
        yield told
