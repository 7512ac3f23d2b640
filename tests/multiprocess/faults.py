"""Faults of a training run, and what becomes of it.

    python tests/multiprocess/faults.py --output docs/robustness.md

does all of them to a small run with real processes and writes the table of outcomes into the page, between its two markers. Every fault
is followed by the same command again, and the numbers of the finished run must be those of a run that nothing disturbed, to the last bit.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from fault_laboratory import Ended, Laboratory, Start, hurt, largest_file, small_disk

MARKERS = ("<!-- faults: begin -->", "<!-- faults: end -->")


class Outcome(NamedTuple):
    """fault; times: how often it was done; status: the exit status of the run that it hit; lost: the most steps that were done again;
    said: the line by which the run, or the next start, tells of it."""

    fault: str
    times: int
    status: str
    lost: int
    said: str


def kills(laboratory: Laboratory, processes: int, count: int, seed: int) -> Outcome:
    """SIGKILL of one or of all processes, `count` times in one run: while it starts, at a step, or while it saves."""
    chance = random.Random(seed)
    workdir = laboratory.folder / f"killed_{processes}"
    statuses, lost, before = set(), 0, 0
    for number in range(count):
        start = laboratory.start(workdir, processes)
        struck = strike_moment(start, ("start", "step", "save")[number % 3], before, chance)
        assert struck, start.end().output
        start.send(signal.SIGKILL, None if processes == 1 or number % 2 else [chance.randrange(processes)])
        ended = start.end()
        statuses.add(ended.status)
        # A start that was killed before it went on from anywhere loses nothing, and leaves the log as it was.
        if "parameters trained" in ended.output:
            lost = max(lost, before - ended.continued)
        before = ended.reached
    finished = laboratory.finish(workdir, processes)
    lost = max(lost, before - finished.continued)
    # The interval, and the steps that were made while the newest save was still being written: the next save waits for it.
    assert lost <= 2 * laboratory.every, lost
    who = "the process" if processes == 1 else f"one or all of {processes} processes"
    fault = f"SIGKILL of {who} while it starts, at a step, during a save"
    # On a machine so slow that each kill came before the first save had ended, there is nothing to go on from.
    said = line(finished, "continuing" if finished.continued else "was not written to its end")
    return Outcome(fault, count, status(statuses), lost, said)


def strike_moment(start: Start, kind: str, before: int, chance: random.Random) -> bool:
    """Waits for a moment while the run starts, soon after step `before`, or during a save; False if it ended before."""
    if kind == "start":
        moment = time.monotonic() + chance.uniform(0, 6)
        return start.until(lambda: time.monotonic() > moment)
    reached = start.until_saving() if kind == "save" else start.until_announced() and start.until_step(before + chance.randint(1, 3))
    time.sleep(chance.uniform(0, 0.05))
    return reached


def leave(laboratory: Laboratory, name: str, when: Callable[[Start], bool], processes: int = 1, ranks: list[int] | None = None) -> Outcome:
    """SIGTERM: all processes save the same step and leave with status 75; no step is lost."""
    workdir = laboratory.folder / name.replace(" ", "_").replace(",", "")
    start = laboratory.start(workdir, processes)
    assert when(start), start.end().output
    start.send(signal.SIGTERM, ranks)
    ended = start.end()
    assert ended.status == 75, ended.output
    saved = re.findall(r"preempted: saved after step (\d+)", ended.output)
    assert len(saved) == processes, ended.output
    assert {int(step) for step in saved} == {laboratory.saved_steps(workdir)[0]} == {ended.reached}
    finished = laboratory.finish(workdir, processes)
    assert finished.continued == ended.reached
    return Outcome(name, 1, "75", 0, line(ended, "preempted: "))


def full_disk(laboratory: Laboratory) -> Outcome:
    """The disk fills up while a step is saved; after room was made the run goes on."""
    folder = laboratory.folder / "disk"
    size = sum(path.stat().st_size for path in laboratory.half_done.rglob("*") if path.is_file())
    with small_disk(folder, 1 << 30) as resize:
        workdir = Path(shutil.copytree(laboratory.half_done, folder / "run"))
        newest = laboratory.saved_steps(workdir)[0]
        if resize is not None:
            resize(int(size * 1.15))
            ended = laboratory.run(workdir)
            how, refused = "a disk that fills up during a save", os.strerror(28)
        else:
            ended = laboratory.start(workdir, largest_file=largest_file(workdir / "steps").stat().st_size // 2).end()
            how, refused = "a file that may not grow (no small disk could be mounted)", os.strerror(27)
        assert ended.status == 2, ended.output
        assert "Traceback" not in ended.output, ended.output
        told = line(ended, "error: ")
        assert refused in told
        if resize is not None:
            resize(1 << 30)
        finished = laboratory.finish(workdir)
        assert finished.continued >= newest, "the steps before are whole"
        return Outcome(how, 1, "2", ended.reached - finished.continued, told)


def damage(laboratory: Laboratory, name: str, harm: Callable[[Path, list[int]], int], said: str) -> Outcome:
    """Harm is done to a work directory whose run is interrupted; `harm` gives the step that is to be continued from."""
    workdir = laboratory.half_done_copy(name.replace(" ", "_").replace(",", ""))
    steps = laboratory.saved_steps(workdir)
    expected = harm(workdir, steps)
    finished = laboratory.finish(workdir)
    assert finished.continued == expected
    return Outcome(name, 1, "-", steps[0] - expected, line(finished, said))


def to_file(kind: str, count: int) -> Callable[[Path, list[int]], int]:
    """Damage to the largest file of each of the newest `count` steps."""

    def harm(workdir: Path, steps: list[int]) -> int:
        for step in steps[:count]:
            hurt(largest_file(workdir / "steps" / str(step) / "trainable"), kind, random.Random(step))
        return steps[count]

    return harm


def to_base(workdir: Path, steps: list[int]) -> int:
    hurt(largest_file(workdir / "base"), "truncated", random.Random(0))
    return steps[0]


def unmarked(workdir: Path, steps: list[int]) -> int:
    (workdir / "steps" / str(steps[0]) / "commit_success.txt").unlink()
    return steps[1]


def leftovers(workdir: Path, steps: list[int]) -> int:
    shutil.copytree(workdir / "steps" / str(steps[0]), workdir / "steps" / "900.orbax-checkpoint-tmp")
    shutil.copytree(workdir / "base", workdir / "base.orbax-checkpoint-tmp")
    (workdir / "steps" / "901").mkdir()
    return steps[0]


def survey(laboratory: Laboratory) -> list[Outcome]:
    """All faults."""
    half = laboratory.steps // 2
    return [
        kills(laboratory, 1, 10, seed=1),
        kills(laboratory, 2, 10, seed=2),
        leave(laboratory, "SIGTERM while the first step is compiled", Start.until_announced),
        leave(laboratory, "SIGTERM at a step", lambda start: start.until_step(half)),
        leave(laboratory, "SIGTERM during a save", Start.until_saving),
        leave(laboratory, "SIGTERM to one of 2 processes", lambda start: start.until_step(half), 2, [1]),
        leave(laboratory, "SIGTERM to both of 2 processes, during a save", Start.until_saving, 2),
        full_disk(laboratory),
        damage(laboratory, "a file of the newest step removed", to_file("removed", 1), "is damaged: "),
        damage(laboratory, "a file of the newest step truncated", to_file("truncated", 1), "is damaged: "),
        damage(laboratory, "one bit of the newest step flipped", to_file("flipped", 1), "is damaged: "),
        damage(laboratory, "the newest step without its mark", unmarked, "is damaged: "),
        damage(laboratory, "all steps but the oldest damaged", to_file("truncated", 2), "is damaged: "),
        damage(laboratory, "base, the parameters that are not trained, truncated", to_base, "base is damaged: "),
        damage(laboratory, "leftover temporary folders", leftovers, "was not written to its end"),
    ]


def status(statuses: set[int]) -> str:
    """SIGKILL as a shell tells it."""
    return ", ".join(str(number) for number in sorted({128 - number if number < 0 else number for number in statuses}))


def line(ended: Ended, part: str) -> str:
    """The first line of the output that has `part` in it."""
    return next(text for text in ended.output.splitlines() if part in text)


def table(outcomes: list[Outcome], folder: Path) -> str:
    """The outcomes as a table of a Markdown page."""
    head = ["fault", "times", "exit status", "steps done again", "the run says"]
    rows = [
        [o.fault, str(o.times), o.status, str(o.lost), "`" + re.sub(rf"{re.escape(str(folder))}/\w+", "RUN", o.said) + "`"]
        for o in outcomes
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---", "---:", "---:", "---:", "---"], *rows)]
    return "\n".join(lines)


def main() -> None:
    import jax
    import orbax.checkpoint

    from data_pipeline import build_shards, synthesize

    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True, metavar="PAGE")
    page = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        scenes, shards = Path(folder, "scenes"), Path(folder, "shards")
        size = ["--train", "8", "--test", "2", "--size", "64", "--seed", "3", "--world", "simple"]
        synthesize.main(["--output", str(scenes), *size])
        build_shards.main(["--source", "lasers", "--input", str(scenes), "--output", str(shards), "--split", "train"])
        laboratory = Laboratory(Path(folder), shards)
        text = table(survey(laboratory), Path(folder))
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, orbax-checkpoint {orbax.checkpoint.__version__}"
    text += f"\n\n{laboratory.steps} steps, saved every {laboratory.every}. Made with {versions}."
    before, _, rest = page.read_text().partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    page.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}")
    print(text)


if __name__ == "__main__":
    main()
