"""Several ways to say one thing, some of which only the test set uses."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Wordings:
    """Ways to say one thing; `held_out` are those that the training set never uses."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def choose(self, rng: np.random.Generator, held_out: float) -> str:
        """One of them; with probability `held_out` one that the training set does not use."""
        pool = self.held_out if self.held_out and rng.random() < held_out else self.train
        return pool[int(rng.integers(len(pool)))]

    def filled(self, **values: str) -> Wordings:
        """The same with its braces filled in."""
        return Wordings(tuple(w.format(**values) for w in self.train), tuple(w.format(**values) for w in self.held_out))
