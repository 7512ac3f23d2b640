"""RefSegRS as published: `images/ID.tif`, `masks/ID.tif`, `output_phrase_{train,val,test}.txt` with one "ID phrase" per line.

As the official SegEarth-R1 reads it (`RefSegRSDataset`). A mask covers everything that its phrase speaks of, one object or several.
"""

from __future__ import annotations

from data_pipeline.schema import Tags
from data_pipeline.sources.phrase_lists import SPLITS, PhraseLists
from data_pipeline.sources.source import Source

_LAYOUT = PhraseLists(images="images", masks="masks", suffix=".tif", tags=Tags(multiplicity="single", reasoning="explicit"))

SOURCE = Source(
    name="refsegrs",
    title="RefSegRS",
    home="https://huggingface.co/datasets/JessicaYuan/RefSegRS",
    licence="CC-BY-4.0",
    splits=SPLITS,
    present=_LAYOUT.present,
    read=_LAYOUT.read,
)
