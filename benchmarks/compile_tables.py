"""The tables of docs/compile.md: the full-size run, compiled for TPU topologies.

    python -m benchmarks.compile_tables

One row after the other is compiled with `segearth-r2 compile`, in a process of its own, and kept in benchmarks/results/compile.json;
started again, it continues with the rows that are missing (`--again` compiles all anew, `--rows NAME ...` some). The tables are then
written into the page between their markers. Needs libtpu; compile times mean something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "compile.json"
PAGE = ROOT / "docs" / "compile.md"
CONFIG = "configs/segearth_r2_lasers.py"
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:4x4x4")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of the command."""

    name: str
    arguments: tuple[str, ...]


def _train(name: str, topology: str, *more: str) -> Row:
    return Row(name, ("--topology", topology, "--tokens", "1024", *more))


ROWS = (
    # Several compilations each, of which the first is of one image per device.
    *(_train(topology, topology, "--find-batch") for topology in TOPOLOGIES),
    _train("no attention supervision", "v5e:4x4", "--batch-per-device=1", "--config.step.weights.attention=0.0"),
    # As many positions at once as a row has: all of them.
    _train("logits not chunked", "v5e:4x4", "--batch-per-device=1", "--config.step.logits_chunk=1024"),
    *(
        Row(f"predict {topology}", ("--topology", topology, "--program=predict", "--batch-per-device=1"))
        for topology in ("v5e:2x2", "v6e:2x2", "v5p:2x2x1")
    ),
)


def compile_row(row: Row) -> dict[str, Any]:
    """The JSON of `segearth-r2 compile`."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = [sys.executable, "-m", "segearth_r2_jax", "compile", "--config", CONFIG, "--output", str(output), *row.arguments]
        # A cached program would be loaded, not compiled.
        environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return {"commit": commit.strip(), **json.loads(output.read_text())}


def tables(results: dict[str, dict[str, Any]]) -> str:
    """The tables of the rows that are there; a row that is not says so."""
    return "\n\n".join((_training_table(results), _variant_table(results), _axis_table(results), _predict_table(results)))


def _training_table(results: dict[str, dict[str, Any]]) -> str:
    head = (
        "| topology | mesh | images per device | arguments | temporaries | needs / has | model FLOPs (executed) "
        "| collectives: arrays (sent) | least time: compute, memory, collectives | compile |"
    )
    lines = [head, "|---" * 10 + "|"]
    for topology in TOPOLOGIES:
        programs = results.get(topology, {}).get("programs", [])
        if not programs:
            lines.append(f"| {topology} |" + " not compiled |" * 9)
            continue
        fitting = [program for program in programs if program["memory"]["fits"]]
        shown = [programs[0], *(program for program in [max(fitting, key=_rows, default=programs[0])] if program is not programs[0])]
        lines += [_training_line(topology, program, programs) for program in shown]
    return "\n".join(lines)


def _training_line(topology: str, program: dict[str, Any], programs: list[dict[str, Any]]) -> str:
    failing = [_rows(other) for other in programs if not other["memory"]["fits"]]
    fitting = [_rows(other) for other in programs if other["memory"]["fits"]]
    rows = str(_rows(program))
    if failing and fitting and _rows(program) == max(fitting):
        what = "the largest" if min(failing) == max(fitting) + 1 else "the largest that was tried"
        rows += f" ({what}: {min(failing)} does not fit)"
    elif fitting and _rows(program) == max(fitting):
        rows += " (the largest was not looked for)"
    memory, cost = program["memory"], program["cost"]
    cells = [topology, _mesh(program["mesh"]), rows, _gib(memory["arguments"]), _gib(memory["temporaries"]), _needs(memory)]
    if cost is None:
        cells += ["-"] * 3
    else:
        cells.append(f"{cost['model_flops'] / 1e12:.1f} ({cost['executed_flops'] / 1e12:.1f}) TFLOP")
        cells.append(f"{_gib(cost['collective_bytes'])} ({_gib(cost['sent_bytes'])})")
        times = (cost[f"{name}_seconds"] for name in ("compute", "memory", "collective"))
        cells.append(", ".join(f"{1e3 * seconds:.0f}" for seconds in times) + f" ms: {cost['bound']}")
    return "| " + " | ".join([*cells, f"{program['compile_seconds']:.0f} s"]) + " |"


def _variant_table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| v5e:4x4, 1 image per device | temporaries | needs / has |", "|---|---|---|"]
    names = {
        "as configured": "v5e:4x4",
        "without attention supervision": "no attention supervision",
        "LM loss not chunked": "logits not chunked",
    }
    for words, name in names.items():
        programs = results.get(name, {}).get("programs")
        memory = programs[0]["memory"] if programs else None
        lines.append(f"| {words} | {_gib(memory['temporaries'])} | {_needs(memory)} |" if memory else f"| {words} | not compiled | |")
    return "\n".join(lines)


def _axis_table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| 1 image per device | devices | mesh | collectives along data | along fsdp | along both |", "|---" * 6 + "|"]
    for name in TOPOLOGIES:
        programs = results.get(name, {}).get("programs")
        if not programs or programs[0]["cost"] is None:
            lines.append(f"| {name} |" + " not compiled |" * 5)
            continue
        sums: dict[str, int] = {}
        for exchange in programs[0]["cost"]["exchanges"]:
            sums[exchange["axes"]] = sums.get(exchange["axes"], 0) + exchange["bytes"]
        cells = [name, str(results[name]["devices"]), _mesh(programs[0]["mesh"])]
        cells += [_gib(sums.get(axes, 0)) for axes in ("data", "fsdp", "data+fsdp")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _predict_table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| chip | program | temporaries | needs / has | model FLOPs | least time |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        if not row.name.startswith("predict "):
            continue
        chip = row.name.removeprefix("predict ").partition(":")[0]
        for program in results.get(row.name, {}).get("programs", []):
            memory, cost = program["memory"], program["cost"]
            name = program["program"].removeprefix("predict: ")
            work = ["-", "-"]
            if cost is not None:
                work = [f"{cost['model_flops'] / 1e12:.2f} TFLOP", f"{1e3 * cost['seconds']:.1f} ms: {cost['bound']}"]
            lines.append("| " + " | ".join([chip, name, _gib(memory["temporaries"]), _needs(memory), *work]) + " |")
        if row.name not in results:
            lines.append(f"| {chip} | not compiled | | | | |")
    return "\n".join(lines)


def _rows(program: dict[str, Any]) -> int:
    return program["sizes"]["images per device"]


def _mesh(mesh: dict[str, int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in mesh.items() if size > 1) or "one device"


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f} GiB"


def _needs(memory: dict[str, Any]) -> str:
    words = "fits" if memory["fits"] else "does not fit"
    return f"{memory['needed'] / GIB:.2f} / {memory['usable'] / GIB:.2f} GiB: {words}"


def write_page(page: Path, text: str, results: Iterable[dict[str, Any]]) -> None:
    """Puts the tables between the page's markers, with what made them."""
    begin, end = "<!-- tables: begin -->", "<!-- tables: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page}: has no {begin} ... {end}")
    made = {
        ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f" on {result['processors']} processors, at commit {result['commit']}"
        for result in results
    }
    note = "Compiled with " + "; ".join(sorted(made)) + "." if made else "Nothing has been compiled yet."
    page.write_text(f"{before}{begin}\n{text}\n\n{note}\n{end}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=[row.name for row in ROWS], help="only these, anew")
    parser.add_argument("--again", action="store_true", help="compile all rows anew")
    args = parser.parse_args(arguments)
    results = {} if args.again or not RESULTS.is_file() else json.loads(RESULTS.read_text())
    wanted = [row for row in ROWS if (row.name in args.rows if args.rows else row.name not in results)]
    for row in tqdm(wanted, unit="row", disable=None):
        print(row.name, flush=True)
        results[row.name] = compile_row(row)
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps({one.name: results[one.name] for one in ROWS if one.name in results}, indent=1) + "\n")
        partial.replace(RESULTS)
    write_page(PAGE, tables(results), results.values())


if __name__ == "__main__":
    main()
