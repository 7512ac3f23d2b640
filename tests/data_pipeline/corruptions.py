"""Seeded random damage to a data set and to shards, and what the pipeline makes of it.

    python tests/data_pipeline/corruptions.py --output docs/robustness.md

runs 1,000 of them and writes the table of outcomes into the page, between its two markers.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import itertools
import json
import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from lasers_example import write_lasers

from data_pipeline.build_shards import main as build
from data_pipeline.shard_folder import ShardedRecords
from data_pipeline.tfrecord import read_offsets
from data_pipeline.verify_shards import main as verify
from segearth_r2_jax.errors import UserError

# Every kind of damage and how many of a thousand are of it.
SHARES = {
    "JSON bytes": 150,
    "JSON values": 200,
    "RLE": 150,
    "PNG bytes": 100,
    "JPEG bytes": 100,
    "shard bytes": 120,
    "index bytes": 90,
    "manifest bytes": 90,
}
SOURCE_KINDS = tuple(SHARES)[:5]
# What may become of damage to a data set ...
REFUSED = "refused: the file is named"
REJECTED = "rejected: file and row are named"
HARMLESS = "harmless: the records are the same"
WELL_FORMED = "well-formed: other content, nothing shows it"
# ... and to shards.
FOUND = "found on reading: file and offset, or record, are named"
VERIFIED = "found by verify_shards only"
OUTCOMES = (REFUSED, REJECTED, FOUND, VERIFIED, HARMLESS, WELL_FORMED)

TRAIN = "train/annotations/train_ann.json"
MARKERS = "<!-- outcomes: begin -->", "<!-- outcomes: end -->"


class Laboratory:
    """A data set, its shards, and copies of both to damage."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = write_lasers(folder / "data", 6)
        write_lasers(self.data, 2, "test", "test_short_query.json")
        assert run(build, "--source", "lasers", "--input", self.data, "--output", folder / "shards", "--shards", 2)[0] == 0
        self.records = read(folder / "shards")
        used = {row[3] for rows in self.records.values() for row in rows}
        self.pictures = sorted(path for path in self.data.rglob("*.*") if hashlib.sha256(path.read_bytes()).hexdigest() in used)

    def damage(self, kind: str, seed: int, sums: bool = False) -> tuple[str, str]:
        """Does damage number `seed` of a kind; its outcome, and what was done and said. AssertionError if it is none of OUTCOMES.

        With `sums` the data set has a SHA256SUMS of its undamaged files.
        """
        random = np.random.default_rng([seed, *kind.encode()])
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            return (self._source if kind in SOURCE_KINDS else self._shards)(kind, random, Path(name), sums)

    def _source(self, kind: str, random: np.random.Generator, place: Path, sums: bool) -> tuple[str, str]:
        data = shutil.copytree(self.data, place / "data")
        if sums:
            write_sums(data)
        if kind.startswith("JSON") or kind == "RLE":
            file = data / TRAIN
            change = damage_bytes if kind == "JSON bytes" else damage_values if kind == "JSON values" else damage_rle
            done = rewrite(file, change, random)
        else:
            suffix = ".png" if kind.startswith("PNG") else ".jpg"
            chosen = [path for path in self.pictures if path.suffix == suffix]
            file = data / chosen[random.integers(len(chosen))].relative_to(self.data)
            done = rewrite(file, damage_bytes, random)
        status, said = run(build, "--source", "lasers", "--input", data, "--output", place / "out", "--shards", 2)
        return self._judge(status, said, place / "out", file), f"{file.relative_to(data)}: {done}: {said}"

    def _judge(self, status: int, said: str, output: Path, file: Path) -> str:
        assert status in (0, 2), said
        if status == 2:
            # The whole set is refused.
            assert said.startswith("error: ")
            assert said.count("\n") == 1, said
            assert file.name in said or file.parent.name in said, said
            assert not output.exists()
            return REFUSED
        rejected = json.loads((output / "report.json").read_text())["rejected"]
        for entry in rejected:
            assert entry["reason"], entry
            assert "annotations/" in entry["name"], entry
            assert ": row '" in entry["name"] or ": entry " in entry["name"], entry
        found = read(output)
        lost = [row for split in found for row in self.records[split] if row not in found[split]]
        other = [row for split in found for row in found[split] if row not in self.records[split]]
        if other or len(lost) > len(rejected):
            return WELL_FORMED
        return REJECTED if rejected else HARMLESS

    def _shards(self, kind: str, random: np.random.Generator, place: Path, sums: bool) -> tuple[str, str]:
        shards = shutil.copytree(self.folder / "shards", place / "shards")
        pattern = {"shard bytes": "train*.tfrecord", "index bytes": "train*.index", "manifest bytes": "manifest.json"}[kind]
        files = sorted(shards.glob(pattern))
        file = files[random.integers(len(files))]
        change = damage_bytes
        if kind == "shard bytes" and random.random() < 0.2:
            offsets = read_offsets(file)
            change = lambda content, random: damage_records(content, random, offsets)  # noqa: E731
        done = rewrite(file, change, random)
        said = ""
        try:
            found = read(shards)
        except UserError as error:
            outcome, said = FOUND, str(error)
            assert "\n" not in said
            assert file.name.removesuffix(".index") in said or "manifest" in said, said
        else:
            status, said = run(verify, shards)
            if found != self.records:
                assert status == 2, f"silently accepted: {file.name}: {done}"
                assert file.name in said, said
                outcome = VERIFIED
            else:
                outcome = HARMLESS
                if kind == "shard bytes":
                    # Harmless to these records, and yet not what was written.
                    assert (status == 2) == (file.read_bytes() != (self.folder / "shards" / file.name).read_bytes()), said
        return outcome, f"{file.name}: {done}: {said}"


def run(command: Callable[[list[str]], int], *arguments: Any) -> tuple[int, str]:
    """Exit status and stderr of a command line."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        status = command([str(argument) for argument in arguments])
    lines = [line for line in error.getvalue().splitlines(keepends=True) if ".tfrecord: " not in line or line.startswith("error")]
    return status, "".join(lines)


def read(folder: Path) -> dict[str, list[tuple]]:
    """Everything that the records of a folder say, by split, with what the manifest says about the number of their masks."""
    content = {}
    for split in ("train", "test"):
        records = ShardedRecords(folder, split)
        content[split] = []
        for index, count in enumerate(records.masks_per_record.tolist()):
            r = records[index]
            masks = tuple((tuple(mask["size"]), mask["counts"]) for mask in r.masks or ())
            picture = hashlib.sha256(r.image_bytes).hexdigest()
            content[split].append(
                (r.record_id, r.source, r.image_name, picture, r.height, r.width, r.instruction, r.answer, masks, r.tags, count)
            )
    return content


def write_sums(folder: Path) -> None:
    """What `sha256sum` says about the files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def rewrite(file: Path, change: Callable[[bytes, np.random.Generator], tuple[bytes, str]], random: np.random.Generator) -> str:
    """Damages a file, really; says how."""
    content = file.read_bytes()
    damaged, done = content, ""
    while damaged == content:
        damaged, done = change(content, random)
    file.write_bytes(damaged)
    return done


def damage_bytes(content: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """A flipped bit, another byte, a cut, bytes lost, doubled, inserted, swapped or zeroed."""
    at, length = int(random.integers(len(content))), int(random.integers(1, 40))
    end = min(at + length, len(content))
    how = random.choice(["flip", "replace", "truncate", "delete", "duplicate", "insert", "swap", "zero"])
    if how == "flip":
        middle = bytes([content[at] ^ 1 << int(random.integers(8))]) + content[at + 1 : end]
    elif how == "replace":
        middle = random.bytes(1) + content[at + 1 : end]
    elif how == "truncate":
        return content[:at], f"cut off at byte {at}"
    elif how == "delete":
        middle = b""
    elif how == "duplicate":
        middle = content[at:end] * 2
    elif how == "insert":
        middle = random.bytes(length) + content[at:end]
    elif how == "swap":
        middle = content[at:end][::-1]
    else:
        middle = bytes(end - at)
    return content[:at] + middle + content[end:], f"{how} at byte {at}"


def damage_records(content: bytes, random: np.random.Generator, offsets: np.ndarray) -> tuple[bytes, str]:
    """Whole records lost, doubled, or in another order: every checksum is still right."""
    parts = [content[start:end] for start, end in itertools.pairwise(offsets)]
    one, other = random.choice(len(parts), 2, replace=False)
    how = random.choice(["delete", "duplicate", "swap", "replace"])
    if how == "delete":
        del parts[one]
    elif how == "duplicate":
        parts.insert(other, parts[one])
    elif how == "swap":
        parts[one], parts[other] = parts[other], parts[one]
    else:
        parts[one] = parts[other]
    return b"".join(parts), f"{how} record {one}, {other}"


STRANGE = [
    None,
    True,
    0,
    -1,
    1e400,
    3.5,
    "",
    " ",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    {"size": 3},
    "../../x",
    "x" * 5000,
    10**30,
    [None],
    "[SEG]",
]


def damage_values(content: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """A field or a row lost, doubled, swapped with another, or of another type."""
    rows = json.loads(content)
    number = int(random.integers(len(rows)))
    row = rows[number]
    name = str(random.choice(list(row)))
    how = str(
        random.choice(["type", "type", "delete field", "swap fields", "swap rows' fields", "delete row", "duplicate row", "row type"])
    )
    if how == "type":
        row[name] = copy.deepcopy(STRANGE[random.integers(len(STRANGE))])
    elif how == "delete field":
        del row[name]
    elif how == "swap fields":
        other = str(random.choice(list(row)))
        row[name], row[other] = row[other], row[name]
    elif how == "swap rows' fields":
        other_row = rows[int(random.integers(len(rows)))]
        row[name], other_row[name] = other_row[name], row[name]
    elif how == "delete row":
        del rows[number]
    elif how == "duplicate row":
        rows.insert(int(random.integers(len(rows))), row)
    else:
        rows[number] = copy.deepcopy(STRANGE[random.integers(len(STRANGE))])
    return json.dumps(rows).encode(), f"{how}: {name} of entry {number}"


def damage_rle(content: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """Damage to one mask: its size, its counts, its form."""
    rows = json.loads(content)
    number = int(random.choice([index for index, row in enumerate(rows) if row["mask"]]))
    masks = rows[number]["mask"]
    place = int(random.integers(len(masks)))
    mask = masks[place]
    how = str(random.choice(["counts", "counts", "counts", "size", "type", "swap", "delete", "duplicate"]))
    if how == "counts":
        changed, how = damage_bytes(mask["counts"].encode(), random)
        mask["counts"] = changed.decode("latin-1")
    elif how == "size":
        options = [
            mask["size"][::-1],
            [1, 1],
            [0, 0],
            [10**9, 10**9],
            [-1, -1],
            ["a", "b"],
            mask["size"][:1],
            [float(s) for s in mask["size"]],
        ]
        mask["size"] = options[random.integers(len(options))]
    elif how == "type":
        key = str(random.choice(["size", "counts"]))
        mask[key] = copy.deepcopy(STRANGE[random.integers(len(STRANGE))])
    elif how == "swap":
        other = rows[int(random.choice([index for index, row in enumerate(rows) if row["mask"]]))]["mask"]
        masks[place], other[0] = other[0], masks[place]
    elif how == "delete":
        del masks[place]
    else:
        masks.append(mask)
    return json.dumps(rows).encode(), f"{how}: mask {place} of entry {number}"


def survey(laboratory: Laboratory, scale: float = 1.0) -> dict[str, Counter[str]]:
    """Outcomes by kind of damage; damage to a data set is done twice, without and with SHA256SUMS. `scale`: the share of a thousand."""
    outcomes: dict[str, Counter[str]] = {}
    for kind, count in SHARES.items():
        for sums in (False, True) if kind in SOURCE_KINDS else (False,):
            row = outcomes[kind + (", with SHA256SUMS" if sums else "")] = Counter()
            for seed in range(max(1, round(count * scale))):
                row[laboratory.damage(kind, seed, sums)[0]] += 1
    return outcomes


def table(outcomes: dict[str, Counter[str]]) -> str:
    """The outcomes as a table of a Markdown page."""
    head = ["damage to", "number", *OUTCOMES]
    rows = [[kind, str(row.total()), *(str(row[outcome] or "") for outcome in OUTCOMES)] for kind, row in outcomes.items()]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True, metavar="PAGE")
    page = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        text = table(survey(Laboratory(Path(folder))))
    text += f"\n\nMade with Python {platform.python_version()}, numpy {np.__version__}, Pillow {PIL.__version__}."
    before, _, rest = page.read_text().partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    page.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}")
    print(text)


if __name__ == "__main__":
    main()
