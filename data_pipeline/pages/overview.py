"""The page of a data set: totals, distributions as plots, samples behind a filter, and what cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipeline.annotation import Rejection
from data_pipeline.distributions import SHARE_EDGES, Distributions, in_order, length_bins
from data_pipeline.pages.markup import Markup, element, page, section, totals
from data_pipeline.pages.plots import bar_chart, histogram
from data_pipeline.pages.rejections import rejections_section
from data_pipeline.schema import DIMENSIONS


@dataclasses.dataclass(frozen=True)
class Overview:
    """What the page shows: `cards` of samples, and `distributions` of those of `total` records that were looked at."""

    title: str
    origin: str
    total: int
    distributions: Distributions
    cards: Sequence[Markup]
    rejected: Sequence[Rejection] = ()


def overview_page(overview: Overview) -> str:
    """The whole page."""
    found = overview.distributions
    scanned = found.records + len(overview.rejected)
    looked_at = "all" if scanned == overview.total else f"{scanned:,} of {overview.total:,}, drawn at random,"
    figures: list[tuple[str, object]] = [("records", found.records), ("images", found.images), ("targets", found.targets)]
    if overview.rejected:
        figures.append(("cannot be used", len(overview.rejected)))
    return page(
        overview.title,
        totals(figures),
        element("div", *plots(found), class_="plots") if found.records else None,
        rejections_section(overview.rejected) if overview.rejected else None,
        _samples(overview.cards) if overview.cards else None,
        subtitle=f"{overview.origin}; {looked_at} records were looked at",
        scripts=("masks.js", "inspect.js"),
    )


def plots(found: Distributions) -> list[Markup]:
    """The distributions, each in a section of its own."""
    made = [
        section(name.capitalize(), bar_chart(in_order(found.dimensions[name], DIMENSIONS[name]), f"records by {name}"))
        for name in DIMENSIONS
    ]
    counts = [("withheld" if count is None else f"{count} masks" if count != 1 else "1 mask", n) for count, n in sorted_counts(found)]
    made.append(section("Masks per record", bar_chart(counts, "records by number of masks", limit=9)))
    made.append(section("Category", bar_chart(in_order(found.categories), "records by category")))
    note = f"{found.empty_masks:,} empty masks are not shown." if found.empty_masks else None
    edges, counts = _from_first_decade(SHARE_EDGES, found.shares)
    shares = histogram(edges, counts, "share of the image that a target covers", log=True, form=percent)
    made.append(section("Size of targets", shares, note=note))
    edges, words = length_bins(found.words)
    made.append(section("Length of instructions", histogram(edges, words, "words")))
    sizes = [(f"{width} × {height}", count) for (width, height), count in in_order(found.image_sizes)]
    made.append(section("Image sizes", bar_chart(sizes, "images by width and height in pixels", limit=9)))
    return made


def _from_first_decade(edges: Sequence[float], counts: Sequence[int]) -> tuple[Sequence[float], Sequence[int]]:
    """Bins of four per factor of ten without the empty factors of ten at the start; the last two stay."""
    first = next((number for number, count in enumerate(counts) if count), len(counts))
    start = min(first // 4 * 4, len(counts) - 8)
    return edges[start:], counts[start:]


def sorted_counts(found: Distributions) -> list[tuple[int | None, int]]:
    """Numbers of masks and the records that have them, ascending, withheld ones last."""
    return sorted(found.masks.items(), key=lambda item: (item[0] is None, item[0] or 0))


def percent(share: float) -> str:
    """A share in per cent, with as many digits as it needs."""
    return f"{float(f'{100 * share:.2g}'):.7f}".rstrip("0").rstrip(".") + " %"


def _samples(cards: Sequence[Markup]) -> Markup:
    choices = [
        element(
            "fieldset",
            element("legend", name),
            *(
                element("button", value, type="button", aria_pressed="false", data_dimension=name, data_value=value)
                for value in DIMENSIONS[name]
            ),
        )
        for name in DIMENSIONS
    ]
    masks = element("button", "masks", type="button", aria_pressed="true", id="masks")
    shown = element("output", f"{len(cards)} of {len(cards)} shown", id="count")
    bar = element("div", *choices, masks, shown, class_="filters", role="toolbar", aria_label="Which samples are shown")
    return element("div", element("h2", "Samples"), bar, element("div", *cards, class_="samples"))
