"""The distributions of a data set (`Distributions.to_dict`) as plots, each in a section of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.distributions import length_bins
from data_pipeline.pages.markup import Markup, element, section
from data_pipeline.pages.plots import bar_chart, histogram


def distribution_plots(found: Mapping[str, Any]) -> Markup:
    """All plots, in as many columns as the screen has room for."""
    made = [section(name.capitalize(), bar_chart(_bars(counts), f"records by {name}")) for name, counts in found["tags"].items()]
    masks = [("1 mask" if count == "1" else f"{count} masks", records) for count, records in found["masks_per_record"].items()]
    made.append(section("Masks per record", bar_chart(masks, "records by number of masks", limit=9)))
    made.append(section("Category", bar_chart(_bars(found["categories"]), "records by category that they ask for")))
    made.append(_target_sizes(found))
    edges, counts = length_bins({int(words): count for words, count in found["instruction_words"].items()})
    made.append(section("Length of instructions", histogram(edges, counts, "words")))
    sizes = [(size.replace("x", " × "), count) for size, count in found["image_sizes"].items()]
    made.append(section("Image sizes", bar_chart(sizes, "images by width and height in pixels", limit=9)))
    return element("div", *made, class_="plots")


def percent(share: float) -> str:
    """A share in per cent, with as many digits as it needs."""
    return f"{float(f'{100 * share:.2g}'):.7f}".rstrip("0").rstrip(".") + " %"


def _bars(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return list(counts.items())


def _target_sizes(found: Mapping[str, Any]) -> Markup:
    empty = found["empty_masks"]
    note = f"{empty:,} empty {'mask is' if empty == 1 else 'masks are'} not shown." if empty else None
    edges, counts = _from_first_decade(**found["target_share"])
    plot = histogram(edges, counts, "share of the image that a target covers", log=True, form=percent)
    return section("Size of targets", plot, note=note)


def _from_first_decade(edges: Sequence[float], counts: Sequence[int]) -> tuple[Sequence[float], Sequence[int]]:
    """Bins of four per factor of ten without the empty factors of ten at the start; the last two stay."""
    first = next((number for number, count in enumerate(counts) if count), len(counts))
    start = min(first // 4 * 4, len(counts) - 8)
    return edges[start:], counts[start:]
