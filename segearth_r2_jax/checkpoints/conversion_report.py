"""What a conversion did with every tensor: on the screen in a few lines, as JSON key by key."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from segearth_r2_jax.checkpoints.key_rules import KeyMap

# Of an array at a time, little enough to stay in a processor's cache.
_CHECKSUM_BYTES = 1 << 20
# What `Entry.goes` says of a tensor that is not taken.
DROPPED = ("dropped",)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the reference's names.

    file, source: where it comes from: a file, and the tensor's name in it.
    goes: what became of it: the leaves (row of a stack in brackets), "kept" if the network does not compute with it; `DROPPED`.
    transform: what was done to its values, in words.
    shape, dtype: as stored in the source; stored_as: the dtype that was written.
    crc32c: of its bytes in the source, C order, little endian; None if they were not read.
    """

    key: str
    file: str
    source: str
    goes: tuple[str, ...]
    transform: str
    shape: tuple[int, ...]
    dtype: str
    stored_as: str
    crc32c: str | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did, in the reference's tensors.

    kind: what was converted into what.
    mapped: how many hold parameters, `parameters` leaves in all; kept: how many the network does not compute with.
    partly, unused, absent: which ones hold parameters and rows without use, which ones are kept, and which ones that the network does
        not compute with are not there.
    notes: what else the user should know, a line each.
    bytes: of all tensors written, by dtype.
    """

    kind: str
    mapped: int
    parameters: int
    kept: int
    partly: tuple[str, ...]
    unused: tuple[str, ...]
    absent: tuple[str, ...]
    notes: tuple[str, ...]
    bytes: dict[str, int]
    template: str
    entries: tuple[Entry, ...] = dataclasses.field(repr=False)

    def lines(self) -> list[str]:
        """The report as text."""
        return [
            self.kind,
            f"keys: {self.mapped} mapped to {self.parameters} parameters, {self.kept} not used by the network and kept",
            *(f"  used in part: {names}" for names in self.partly),
            *(f"  not used: {names}" for names in self.unused),
            *(f"  not used, not there: {names}" for names in self.absent),
            *self.notes,
            "bytes: " + ", ".join(f"{size:,} {dtype}" for dtype, size in sorted(self.bytes.items())),
            f"prompt template: {self.template}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; `entries` has every key."""
        return dataclasses.asdict(self)


def make_report(kind: str, keys: KeyMap, entries: Iterable[Entry], template: str, notes: Iterable[str] = ()) -> Report:
    """The report of a conversion whose tensors are `entries`, those that were dropped among them."""
    entries = tuple(entries)
    taken = [entry for entry in entries if entry.goes != DROPPED]
    present = {entry.key for entry in taken}
    total: Counter[str] = Counter()
    for entry in taken:
        total[entry.stored_as] += math.prod(entry.shape) * jnp.dtype(entry.stored_as).itemsize
    unused = [name for name, parts in keys.parts.items() if not parts]
    kept = [name for name in unused if name in present]
    return Report(
        kind=kind,
        mapped=len(keys.parts) - len(unused),
        parameters=len(keys.leaves),
        kept=len(kept),
        partly=_summary((name for name, parts in keys.parts.items() if any(part.path is None for part in parts)), keys.parts),
        unused=_summary(kept, keys.parts),
        absent=_summary((name for name in unused if name not in present), keys.parts),
        notes=tuple(notes),
        bytes=dict(total),
        template=template,
        entries=entries,
    )


def where_it_goes(keys: KeyMap, key: str) -> tuple[str, ...]:
    """The leaves that a tensor of the reference holds, as `Entry.goes` says it."""
    parts = keys.parts[key]
    if not parts:
        return ("kept",)
    rows = [f" rows {part.start}:{part.stop}" if len(parts) > 1 else "" for part in parts]
    leaves = ["kept" if part.path is None else part.path + ("" if part.index is None else f"[{part.index}]") for part in parts]
    return tuple(leaf + row for leaf, row in zip(leaves, rows, strict=True))


def _summary(names: Iterable[str], everything: Iterable[str]) -> tuple[str, ...]:
    """A few lines that say which of `everything` the `names` are: whole subtrees as "prefix.*", layer numbers as "*", with counts."""
    names = list(names)
    others = set(everything) - set(names)
    subtrees: Counter[str] = Counter()
    for name in names:
        steps = name.split(".")
        prefixes = [".".join(steps[:depth]) for depth in range(1, len(steps))]
        whole = next((prefix for prefix in prefixes if not any(other.startswith(f"{prefix}.") for other in others)), None)
        subtrees[name if whole is None else f"{whole}.*"] += 1
    alike: dict[str, list[str]] = {}
    for subtree in subtrees:
        alike.setdefault(re.sub(r"\.\d+(?=\.)", ".*", subtree), []).append(subtree)
    return tuple(f"{line if len(those) > 1 else those[0]} ({sum(map(subtrees.get, those))})" for line, those in alike.items())
