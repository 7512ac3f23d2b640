"""The page of a data set: totals, distributions as plots, samples behind a filter, and what cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipeline.annotation import Rejection
from data_pipeline.distributions import Distributions
from data_pipeline.pages.distribution_plots import distribution_plots
from data_pipeline.pages.markup import Markup, element, page, totals
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
        distribution_plots(found.to_dict()) if found.records else None,
        rejections_section(overview.rejected) if overview.rejected else None,
        _samples(overview.cards) if overview.cards else None,
        subtitle=f"{overview.origin}; {looked_at} records were looked at",
        scripts=("masks.js", "inspect.js"),
    )


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
