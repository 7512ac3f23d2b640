"""RISBench as published: `img_rgb/NAME.png`, `mask/NAME.png`, `output_phrase_{train,val,test}.txt` with one "NAME.png phrase" per line.

Two independent public loaders read this form; the authors (HIT-SIRS/CroBIM) published none. The images of `val` are called `train_*`,
and each line has an image file of its own, so the same view occurs under several names.
"""

from __future__ import annotations

from data_pipeline.schema import Tags
from data_pipeline.sources.phrase_lists import SPLITS, PhraseLists
from data_pipeline.sources.source import Source

_LAYOUT = PhraseLists(images="img_rgb", masks="mask", suffix="", tags=Tags(multiplicity="single", reasoning="explicit"))

SOURCE = Source(
    name="risbench",
    title="RISBench",
    home="https://github.com/HIT-SIRS/CroBIM",
    licence="CC-BY-4.0",
    splits=SPLITS,
    present=_LAYOUT.present,
    read=_LAYOUT.read,
)
