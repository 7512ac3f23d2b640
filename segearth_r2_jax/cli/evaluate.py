"""`segearth-r2 evaluate --checkpoint DIR --data DIR --benchmark lasers --output DIR`

Writes OUTPUT/report.json and prints its figures as a table. Answers are greedy: the same checkpoint and data give the same report.
Started as several processes (`launch/runtime.py`) they share the questions; the first speaks and writes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segearth_r2_jax.cli.compilation_cache import keep_compiled_programs
from segearth_r2_jax.cli.predict import add_model_arguments, make_folder, positive, write_whole
from segearth_r2_jax.errors import UserError

HELP = "score a checkpoint on a benchmark: report.json and a table"

BENCHMARKS = ("lasers",)
RULES = ("original", "official-1024")
_SECONDS_BETWEEN_LINES = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder made by `train` or `convert`, or gs://...")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="data set in the layout of the benchmark")
    parser.add_argument("--benchmark", required=True, choices=BENCHMARKS)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="report.json goes there")
    parser.add_argument("--rule", choices=RULES, default=RULES[0], help="pixels that are compared: the image's own, or eval.py's frame")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N records of each file")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="questions answered at once (1)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Raises UserError on wrong data or a wrong checkpoint. Of several processes all work, and the first speaks and writes."""
    from data_pipeline.sources.lasers import benchmarks, evaluation_records
    from segearth_r2_jax.checkpoints.manager import read_model_config
    from segearth_r2_jax.evaluation.lasers import FILES, evaluate, in_order
    from segearth_r2_jax.evaluation.processes import agree, leads
    from segearth_r2_jax.evaluation.report import format_table, make_report

    files = {}

    def prepare() -> None:
        """What can be wrong is found before the weights are loaded, in all processes."""
        for name in in_order(benchmarks(args.data)):
            files[name] = evaluation_records(args.data, name)[: args.limit]
        read_model_config(args.checkpoint)
        if leads():
            make_folder(args.output)

    agree(prepare)
    keep_compiled_programs()
    from segearth_r2_jax.inference.segment import Segmenter

    segmenter = Segmenter.load(args.checkpoint, dtype=args.dtype, int8=args.int8, template=args.template)
    if len(set(agree(lambda: segmenter.step))) > 1:
        raise UserError(f"{args.checkpoint}: the processes see different steps there; is a run still writing?")
    scores = evaluate(
        segmenter,
        files,
        rule=args.rule,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        progress=_progress(sum(map(len, files.values()))) if leads() else lambda records: None,
    )
    about = {
        "checkpoint": segmenter.checkpoint,
        "step": segmenter.step,
        "template": segmenter.template,
        "dtype": segmenter.dtype,
        "int8": segmenter.int8,
        "data": str(args.data),
        "limit": args.limit,
        "max_new_tokens": args.max_new_tokens,
        "missing_files": [name for name in FILES if name not in files],
    }
    report = make_report(args.benchmark, args.rule, scores.files, scores.baselines, about)
    agree(lambda: _write(report, args.output) if leads() else None)
    if leads():
        print(format_table(report))
        print(f"report: {args.output / 'report.json'}")


def _write(report: dict[str, Any], folder: Path) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        write_whole(folder / "report.json", lambda file: file.write_text(text + "\n", encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def _progress(total: int) -> Callable[[int], None]:
    """Shows finished records: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(total=total, unit=" records").update
    start = last = time.monotonic()
    done = 0

    def show(records: int) -> None:
        nonlocal done, last
        done += records
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            print(f"{done} of {total} records, {done / (now - start):.2f} per second", file=sys.stderr, flush=True)

    return show
