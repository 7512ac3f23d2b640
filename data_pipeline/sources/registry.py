"""Every reader by the name that `--source` calls it."""

from __future__ import annotations

from data_pipeline.sources import earth_reason, folder, geopixeld, lasers, lrs_gro, ref_segrs, risbench, rrsis_d
from data_pipeline.sources.source import Source
from segearth_r2_jax.errors import UserError

_MODULES = (lasers, earth_reason, rrsis_d, ref_segrs, risbench, lrs_gro, geopixeld, folder)
SOURCES: dict[str, Source] = {module.SOURCE.name: module.SOURCE for module in _MODULES}


def get_source(name: str) -> Source:
    """The reader `name`; UserError if there is none."""
    if name not in SOURCES:
        raise UserError(f"--source {name}: no such source; there are {', '.join(SOURCES)}")
    return SOURCES[name]
