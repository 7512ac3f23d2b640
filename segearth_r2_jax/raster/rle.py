"""Run-length encoded masks in the compressed form of COCO (`pycocotools.mask`), in numpy alone.

A mask is read column by column; `counts` are the lengths of its runs, zeros first. From the fourth run on each length is
stored as the difference to the length two runs before. A number is written in groups of five bits, lowest first, one
character each (value + 48); bit 5 says that another group follows, bit 4 of the last group is the sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from segearth_r2_jax.errors import UserError

# A mask is allocated at its declared size, so the declaration needs a bound: 32768 x 32768, one GiB.
MAX_PIXELS = 2**30
# Seven groups of five bits hold every run length up to MAX_PIXELS with its sign.
_MAX_GROUPS = 7


def encode(mask: np.ndarray) -> dict[str, Any]:
    """The compressed RLE `{"size": [h, w], "counts": str}` of `mask` [h, w]: whatever is not zero is foreground."""
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"a mask is [h, w] with at least one pixel, got shape {mask.shape}")
    h, w = mask.shape
    columns = np.ascontiguousarray((mask != 0).T).reshape(-1)
    edges = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    edges = np.concatenate([[0] if columns[0] else [], [0], edges, [columns.size]]).astype(np.int64)
    return {"size": [int(h), int(w)], "counts": _write_counts(np.diff(edges))}


def decode(rle: Mapping[str, Any], name: str = "mask") -> np.ndarray:
    """The mask uint8 [h, w] (0 or 1) of a COCO RLE; `counts` may be str, bytes or a list of run lengths.

    Raises UserError, beginning with `name`, where `rle` is not such a mapping or its runs do not fill the size exactly.
    """
    (h, w), lengths = _checked(rle, name)
    return np.ascontiguousarray(_paint(lengths).reshape(w, h).T)


def area(rle: Mapping[str, Any], name: str = "mask") -> int:
    """How many pixels the mask of a COCO RLE covers, without its being decoded. Raises UserError as `decode` does."""
    return int(_checked(rle, name)[1][1::2].sum())


def decode_box(rle: Mapping[str, Any], name: str = "mask") -> tuple[int, int, np.ndarray]:
    """The smallest box that holds the foreground of `decode(rle)`, without the rest being decoded: its top, its left, its pixels.

    The pixels are uint8 [columns, rows], transposed as the runs are: `mask[top : top + rows, left : left + columns] = pixels.T`. A mask
    without foreground has a box of 0 x 0. Raises UserError as `decode` does.
    """
    (h, _), lengths = _checked(rle, name)
    ends = np.cumsum(lengths)
    starts, stops = ends[:-1:2], ends[1::2]
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    if not starts.size:
        return 0, 0, np.zeros((0, 0), np.uint8)
    left, right = int(starts[0]) // h, (int(stops[-1]) - 1) // h + 1
    top, bottom = 0, h
    if (starts // h == (stops - 1) // h).all():  # No run goes on in the next column.
        top, bottom = int((starts % h).min()), int(((stops - 1) % h).max()) + 1
    edges = np.clip(np.concatenate([[0], ends]), left * h, right * h)
    columns = _paint(np.diff(edges)).reshape(right - left, h)
    return top, left, np.ascontiguousarray(columns[:, top:bottom])


def _checked(rle: Mapping[str, Any], name: str) -> tuple[tuple[int, int], np.ndarray]:
    """Size and run lengths of an RLE, the lengths summing up to the size."""
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise UserError(f'{name}: an RLE mask is {{"size": [height, width], "counts": "..."}}')
    h, w = _read_size(rle["size"], name)
    counts = rle["counts"]
    lengths = _check_list(counts, name) if isinstance(counts, list | tuple) else _read_counts(counts, name)
    if lengths.size and (lengths.min() < 0 or lengths.max() > h * w):
        raise UserError(f"{name}: the RLE holds a run of impossible length for its size {h}x{w}")
    if int(lengths.sum()) != h * w:
        raise UserError(f"{name}: the RLE's runs cover {int(lengths.sum())} pixels, its size {h}x{w} has {h * w}")
    return (h, w), lengths


def _paint(lengths: np.ndarray) -> np.ndarray:
    """Runs of zeros and ones in turn, zeros first, as uint8 pixels."""
    return np.repeat((np.arange(lengths.size) & 1).astype(np.uint8), lengths)


def _read_size(size: Any, name: str) -> tuple[int, int]:
    sides = list(size) if isinstance(size, list | tuple) else []
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides):
        raise UserError(f"{name}: the RLE's size must be two positive whole numbers [height, width], it is {size!r:.60}")
    if sides[0] * sides[1] > MAX_PIXELS:
        raise UserError(f"{name}: the RLE's size {sides[0]}x{sides[1]} is over the limit of {MAX_PIXELS} pixels")
    return sides[0], sides[1]


def _check_list(counts: list[Any] | tuple[Any, ...], name: str) -> np.ndarray:
    if not all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= MAX_PIXELS for c in counts):
        raise UserError(f"{name}: the RLE's counts must be whole numbers, zero or more")
    return np.asarray(counts, np.int64)


def _read_counts(counts: Any, name: str) -> np.ndarray:
    """Run lengths int64 [n] of compressed `counts`, all groups at once."""
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    if not isinstance(counts, bytes):
        raise UserError(f"{name}: the RLE's counts must be a string, they are of type {type(counts).__name__}")
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if groups.size == 0:
        return groups
    if groups.min() < 0 or groups.max() > 63:
        raise UserError(f"{name}: the RLE's counts hold a character that COCO's compressed form does not have")
    last = np.flatnonzero(groups < 32)
    if last.size == 0 or last[-1] != groups.size - 1:
        raise UserError(f"{name}: the RLE's counts end in the middle of a number")
    first = np.concatenate([[0], last[:-1] + 1])
    width = last - first + 1
    if width.max() > _MAX_GROUPS:
        raise UserError(f"{name}: the RLE's counts hold a number that is too large")
    place = np.arange(groups.size) - np.repeat(first, width)
    numbers = np.add.reduceat((groups & 31) << (5 * place), first)
    numbers -= np.where(groups[last] & 16, np.int64(1) << (5 * width), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _write_counts(lengths: np.ndarray) -> str:
    numbers = lengths.astype(np.int64)
    numbers[3:] -= lengths[1:-2]
    characters = np.zeros((numbers.size, _MAX_GROUPS), np.uint8)
    written = np.zeros((numbers.size, _MAX_GROUPS), bool)
    more = np.ones(numbers.size, bool)
    for place in range(_MAX_GROUPS):
        group = numbers & 31
        numbers >>= 5
        written[:, place] = more
        # The rest is finished where it is nothing but the sign that bit 4 of this group already says.
        more = more & np.where(group & 16, numbers != -1, numbers != 0)
        characters[:, place] = group + 32 * more + 48
    return characters[written].tobytes().decode("ascii")
