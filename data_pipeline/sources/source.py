"""What a reader is: a name, where its data set is to be had, and a function that yields its annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipeline.annotation import Annotation, Rejection


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set in the layout its authors publish.

    Attributes:
      name: what `--source` calls it.
      title: its name in full.
      home: where it is to be had.
      licence: the terms its authors state; "not stated" where they state none.
      splits: its splits, in order.
      present: `present(folder)` names the splits that a folder holds; UserError if it is not in this layout.
      read: `read(folder, split)` yields every annotation of a split, in the files' order, or the reason why one cannot be used;
        UserError where a whole file is damaged or absent.
    """

    name: str
    title: str
    home: str
    licence: str
    splits: tuple[str, ...]
    present: Callable[[Path], tuple[str, ...]]
    read: Callable[[Path, str], Iterator[Annotation | Rejection]]
