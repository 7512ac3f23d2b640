"""The order of the records: which record stands at each position of the global stream, computed from the position alone.

Nothing is carried along from one position to the next, so any process may start anywhere. Every set of records is a sequence of
permutations, one per epoch, of which the next record is taken whenever the set has its turn: within a set each record comes exactly
once before any comes again. Turns are dealt out evenly in proportion to the sets' weights.

With several token-length buckets the stream is a sequence of global batches, each of one bucket. A bucket then is a set of its own:
its records are permuted among themselves, and it has its turns in proportion to how many rows fall into it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import grain
import numpy as np

# The length of an endless stream.
ENDLESS = 2**60
# Up to this many records are permuted as a whole. Grain's shuffle, which keeps no table, permutes no fewer than 65536 numbers and skips
# those that are too large: a position of a few records takes it milliseconds.
_SMALL = 8192


class Turns:
    """Deals the numbers 0, 1, 2 ... to parts in proportion to their weights: `turns[i]` is the part, and its how-manieth turn that is.

    Turn j of a part with share p is due at (j + 1/2) / p, and turns are taken in the order in which they are due. After i of them every
    part is therefore within about one of its share of i, and parts whose weights are whole numbers have had exactly those many turns
    after as many as their sum.
    """

    def __init__(self, weights: Sequence[float | Fraction]):
        total = sum(weights)
        self._shares = [float(weight / total) for weight in weights]

    def __getitem__(self, number: int) -> tuple[int, int]:
        if len(self._shares) == 1:
            return 0, number
        # About `number` turns are due by the time `number`; a little earlier there are certainly not more.
        taken = [self._due_before(part, max(0, number - len(self._shares))) for part in range(len(self._shares))]
        for _ in range(number - sum(taken)):
            taken[self._next(taken)] += 1
        part = self._next(taken)
        return part, taken[part]

    def _time(self, part: int, turn: int) -> float:
        return (turn + 0.5) / self._shares[part]

    def _next(self, taken: list[int]) -> int:
        return min(range(len(taken)), key=lambda part: self._time(part, taken[part]))

    def _due_before(self, part: int, time: int) -> int:
        turns = max(0, math.floor(time * self._shares[part] + 0.5))
        # The product and the quotient may round differently.
        while turns and self._time(part, turns - 1) >= time:
            turns -= 1
        while self._time(part, turns) < time:
            turns += 1
        return turns


class Shuffled:
    """Some records, again and again, in another order each time; any position is found without those before it."""

    def __init__(self, members: np.ndarray, seed: Sequence[int]):
        """`members` are record numbers, int [n] with n > 0; `seed` fixes the order."""
        self._members = members
        self._seed = tuple(seed)
        number = int(np.random.SeedSequence(self._seed).generate_state(1)[0])
        self._permuted = grain.MapDataset.range(len(members)).seed(number).shuffle().repeat(None)

    def __getitem__(self, position: int) -> int:
        size = len(self._members)
        if size <= _SMALL:
            epoch, place = divmod(position, size)
            return int(self._members[_permutation(self._seed, epoch, size)[place]])
        return int(self._members[self._permuted[position]])


@functools.lru_cache(maxsize=256)
def _permutation(seed: tuple[int, ...], epoch: int, size: int) -> np.ndarray:
    """A permutation of `size` numbers, the same with every version of numpy: how SeedSequence computes is promised not to change."""
    return np.random.SeedSequence((*seed, epoch)).generate_state(size, np.uint64).argsort(kind="stable")


@dataclasses.dataclass(frozen=True)
class Slot:
    """One row of the stream: the record to fill it and the token bucket of its batch."""

    record: int
    bucket: int


class Order:
    """The global stream: `order[position]` -> Slot. The same numbers give the same stream on every machine."""

    def __init__(
        self,
        sets: Sequence[np.ndarray],
        weights: Sequence[float],
        *,
        seed: int,
        num_epochs: int | None,
        batch_size: int,
        buckets: Sequence[int],
        bucket_of_record: np.ndarray | None = None,
    ):
        """Lays out the stream.

        Args:
          sets: the record numbers of each data set, int [n] with n > 0.
          weights: how often each set has its turn.
          seed: fixes the order.
          num_epochs: the stream has this many times as many rows as there are records; None if it has no end. With several sets some
            come round more often than others.
          batch_size: rows of a global batch; with several buckets, where rows of a bucket that fill no batch at the end are left out.
          buckets: the lengths of the token buckets.
          bucket_of_record: int [records], an index into `buckets` for each record number; None if there is one bucket.
        """
        weight = [Fraction(w) for w in weights]
        self._batch_size = batch_size if bucket_of_record is not None else 1
        self._streams: list[list[Shuffled]] = []  # By bucket, then by set with records in it.
        self._sets: list[Turns] = []
        self._lengths: list[int] = []
        shares = []
        rows = sum(len(records) for records in sets)
        for bucket, length in enumerate(buckets):
            members = [r if bucket_of_record is None else r[bucket_of_record[r] == bucket] for r in sets]
            present = [number for number, some in enumerate(members) if len(some)]
            if not present:
                continue
            # The share of the stream's rows that each set gives in this bucket.
            parts = [weight[s] / sum(weight) * Fraction(len(members[s]), len(sets[s])) for s in present]
            self._streams.append([Shuffled(members[s], (seed, s, bucket)) for s in present])
            self._sets.append(Turns(parts))
            self._lengths.append(length)
            shares.append(sum(parts))
        if num_epochs is None:
            self._length = ENDLESS
            self._buckets = Turns(shares)
        else:
            batches = [int(share * rows * num_epochs // self._batch_size) for share in shares]
            # A bucket that fills no batch has no turn: the stream ends before it would.
            self._length = sum(batches) * self._batch_size
            self._buckets = Turns([max(count, Fraction(1, 2 * max(1, sum(batches)))) for count in batches])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Slot:
        batch, row = divmod(position, self._batch_size)
        bucket, number = self._buckets[batch]
        part, index = self._sets[bucket][number * self._batch_size + row]
        return Slot(self._streams[bucket][part][index], self._lengths[bucket])


@dataclasses.dataclass(frozen=True)
class ProcessShare:
    """The slots of one process in the batches from position `start` on.

    A batch of `batch_size` slots is divided into as many runs of neighbours as there are processes, `rows` each, and this process has
    the run that begins at `first`. Put one after the other the runs are the batch, with the rows where one process would have them.
    """

    order: Order
    start: int
    batch_size: int
    first: int
    rows: int
    batches: int

    def __len__(self) -> int:
        return self.batches * self.rows

    def __getitem__(self, number: int) -> Slot:
        batch, row = divmod(int(number), self.rows)
        return self.order[self.start + batch * self.batch_size + self.first + row]
