"""docs/compile.md: its commands are commands, and its tables say what the results say."""

import argparse
import shlex
from pathlib import Path

import pytest

from benchmarks import compile_tables
from segearth_r2_jax.ahead_of_time.report import Cost, Memory, Report
from segearth_r2_jax.cli import compile as compile_command

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compile.md"
COMMANDS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("segearth-r2 compile ")]
GIB = 2**30


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    compile_command.add_arguments(parser)
    args, overrides = parser.parse_known_args(arguments)
    assert all(override.startswith("--config.") for override in overrides)
    return args


def test_the_page_has_commands():
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_parse_and_name_files_that_exist(command):
    args = _parse(shlex.split(command)[2:])
    assert (PAGE.parents[1] / args.config).is_file()


@pytest.mark.parametrize("row", compile_tables.ROWS, ids=lambda row: row.name)
def test_the_rows_of_its_tables_parse(row):
    _parse(["--config", compile_tables.CONFIG, *row.arguments])


def _result(*reports: Report) -> dict:
    return {
        "devices": 16,
        "commit": "abc",
        "processors": 2,
        "versions": {"jax": "0", "libtpu": "1"},
        "programs": [report.to_dict() for report in reports],
    }


def _report(rows: int, needed: int, *, program: str = "train") -> Report:
    fits = needed <= 16
    memory = Memory(1 * GIB, GIB if fits else None, GIB if fits else None, (needed - 1) * GIB if fits else None, 0, needed * GIB, 16 * GIB)
    cost = Cost(2e13, {"phi": 2e13}, 3e13, 5 * GIB, [], 0.15, 0.05, 0.01, [], 1) if fits else None
    return Report(program, {"images per device": rows}, {"data": 1, "fsdp": 16, "tensor": 1}, memory, cost, 1.0, 42.0)


def test_a_line_for_one_image_and_one_for_the_largest_batch():
    text = compile_tables.tables({"v5e:4x4": _result(_report(1, 6), _report(4, 20), _report(3, 14))})
    first, largest = [line for line in text.splitlines() if line.startswith("| v5e:4x4 | fsdp 16")]
    assert "| 1 | 1.00 GiB | 5.00 GiB | 6.00 / 16.00 GiB: fits |" in first
    assert "| 3 (the largest: 4 does not fit) |" in largest
    assert "| 3 (the largest that was tried: 9 does not fit) |" in compile_tables.tables(
        {"v5e:4x4": _result(_report(3, 14), _report(9, 20))}
    )
    assert "20.0 (30.0) TFLOP" in first
    assert "150, 50, 10 ms: compute | 42 s |" in first
    # The other topologies and tables have no results yet.
    assert "| v5p:4x4x4 | not compiled |" in text
    assert "| without attention supervision | not compiled |" in text


def test_what_does_not_fit_stands_in_the_table():
    text = compile_tables.tables({"v5e:4x4": _result(_report(1, 80))})
    assert "| v5e:4x4 | fsdp 16 | 1 | 1.00 GiB | - | 80.00 / 16.00 GiB: does not fit | - | - | - | 42 s |" in text


def test_the_tables_replace_those_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nafter\n")
    for _ in range(2):
        compile_tables.write_page(page, "new", [_result()])
    note = "Compiled with jax 0, libtpu 1 on 2 processors, at commit abc."
    assert page.read_text() == f"before\n<!-- tables: begin -->\nnew\n\n{note}\n<!-- tables: end -->\nafter\n"
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="has no"):
        compile_tables.write_page(page, "new", [])
