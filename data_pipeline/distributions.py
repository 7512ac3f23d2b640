"""How the records of a data set are distributed: counted one record at a time, kept as small numbers."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from data_pipeline.schema import DIMENSIONS, Record, Tags
from segearth_r2_jax.raster.rle import area

# What stands where a record does not say.
UNKNOWN = "not stated"
# Shares of the image that a target covers, four bins per factor of ten; smaller ones count in the first bin.
SHARE_EDGES = tuple(10 ** (exponent / 4) for exponent in range(-24, 1))
# Pixels that a target covers, one bin per doubling of its side.
PIXEL_EDGES = tuple(4**exponent for exponent in range(16))


def word_count(text: str) -> int:
    """Words of a text; in scripts that do not separate them, characters from U+3040 on count as one each."""
    characters = sum(ord(character) >= 0x3040 for character in text)
    return characters + len("".join(" " if ord(character) >= 0x3040 else character for character in text).split())


def share_bin(share: float) -> int:
    """The bin of SHARE_EDGES that a share of the image, above 0 and at most 1, belongs to."""
    return min(max(math.floor(4 * math.log10(share) + 24 + 1e-9), 0), len(SHARE_EDGES) - 2)


def pixel_bin(pixels: int) -> int:
    """The bin of PIXEL_EDGES that a number of pixels, at least 1, belongs to."""
    return min((pixels.bit_length() - 1) // 2, len(PIXEL_EDGES) - 2)


def length_bins(lengths: dict[int, int], bins: int = 24) -> tuple[list[int], list[int]]:
    """Edges and counts of at most `bins` bins of whole, equal width over counted whole numbers (value -> how many), from 0 on."""
    longest = max(lengths, default=0)
    width = -(-(longest + 1) // bins)
    counts = [0] * (longest // width + 1)
    for length, count in lengths.items():
        counts[length // width] += count
    return [width * number for number in range(len(counts) + 1)], counts


@dataclasses.dataclass
class Distributions:
    """Counts over records.

    Attributes:
      dimensions: dimension -> value (or UNKNOWN) -> records.
      categories: category (or UNKNOWN) -> records that ask for it; one of several categories names them with ", " in between.
      masks: masks of a record (None where they are withheld) -> records.
      shares: targets per bin of SHARE_EDGES; `empty_masks` are in none.
      pixels: targets per bin of PIXEL_EDGES; the same.
      words: words of an instruction -> records.
      image_sizes: (width, height) in pixels -> images.
    """

    dimensions: dict[str, collections.Counter[str]] = dataclasses.field(
        default_factory=lambda: {name: collections.Counter() for name in DIMENSIONS}
    )
    categories: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    masks: collections.Counter[int | None] = dataclasses.field(default_factory=collections.Counter)
    shares: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(SHARE_EDGES) - 1))
    pixels: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(PIXEL_EDGES) - 1))
    empty_masks: int = 0
    words: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    image_sizes: collections.Counter[tuple[int, int]] = dataclasses.field(default_factory=collections.Counter)
    _images: set[str] = dataclasses.field(default_factory=set)

    def add(self, record: Record) -> None:
        """Counts a record; UserError if the runs of a mask are damaged."""
        areas = None
        if record.masks is not None:
            areas = [area(mask, f"{record.source}: row {record.record_id!r}: mask {number}") for number, mask in enumerate(record.masks)]
        self.count(record.tags, record.instruction, areas, (record.width, record.height), record.image_name)

    def count(self, tags: Tags, instruction: str, areas: Sequence[int] | None, image_size: tuple[int, int], image_name: str) -> None:
        """Counts a record of which only this is known; `areas` in pixels, None where withheld; `image_size` is (width, height)."""
        for name, counter in self.dimensions.items():
            counter[getattr(tags, name) or UNKNOWN] += 1
        category = tags.category or UNKNOWN
        self.categories.update(dict.fromkeys(category.split(", ") if tags.multiplicity == "multi" else [category], 1))
        self.masks[None if areas is None else len(areas)] += 1
        for pixels in areas or ():
            if pixels:
                self.shares[share_bin(pixels / (image_size[0] * image_size[1]))] += 1
                self.pixels[pixel_bin(pixels)] += 1
        self.empty_masks += list(areas or ()).count(0)
        self.words[word_count(instruction)] += 1
        if image_name not in self._images:
            self._images.add(image_name)
            self.image_sizes[image_size] += 1

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON values, each in the order in which it is shown: what a report holds and a page draws."""
        return {
            "images": self.images,
            "masks": self.targets,
            "empty_masks": self.empty_masks,
            "tags": {name: dict(in_order(counter, DIMENSIONS[name])) for name, counter in self.dimensions.items()},
            "categories": dict(in_order(self.categories)),
            "masks_per_record": {
                "withheld" if count is None else str(count): self.masks[count]
                for count in sorted(self.masks, key=lambda count: (count is None, count or 0))
            },
            "target_pixels": {"edges": list(PIXEL_EDGES), "counts": self.pixels},
            "target_share": {"edges": list(SHARE_EDGES), "counts": self.shares},
            "instruction_words": {str(words): self.words[words] for words in sorted(self.words)},
            "image_sizes": {f"{width}x{height}": count for (width, height), count in in_order(self.image_sizes)},
        }

    @property
    def records(self) -> int:
        return self.masks.total()

    @property
    def targets(self) -> int:
        return sum((count or 0) * records for count, records in self.masks.items())

    @property
    def images(self) -> int:
        return self.image_sizes.total()


def in_order(counter: collections.Counter[Any], first: Sequence[Any] = ()) -> list[tuple[Any, int]]:
    """The counts by size, those of `first` before the others and in its order, UNKNOWN last."""
    rank = {value: number for number, value in enumerate(first)}
    return sorted(counter.items(), key=lambda item: (item[0] == UNKNOWN, rank.get(item[0], len(rank)), -item[1], str(item[0])))
