"""What cannot be used, as a part of a page."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.annotation import Rejection
from data_pipeline.pages.markup import Markup, section, table

# A file in which everything is wrong would fill any page.
_LISTED = 200


def rejections_section(rejected: Sequence[Rejection]) -> Markup:
    """The rejected rows with their reasons, in their order."""
    rows = [(rejection.name, rejection.reason) for rejection in rejected[:_LISTED]]
    note = f"The first {_LISTED} of {len(rejected):,}." if len(rejected) > _LISTED else None
    return section("Records that cannot be used", table(("record", "reason"), rows), note=note)
