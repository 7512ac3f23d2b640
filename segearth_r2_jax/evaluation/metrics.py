"""gIoU and cIoU of referring and reasoning segmentation, with the pairing rules of the official SegEarth-R2 evaluation.

Masks are paired by their order in the answer. Where an answer has none, every ground-truth mask is paired with an empty mask;
where it has fewer, its last one is repeated; where it has more, the rest is left out and costs nothing. An empty union counts
as an IoU of 1. gIoU is the mean IoU over ground-truth masks, cIoU the sum of intersections over the sum of unions.

Two rules say on which pixels that is counted:

* `original`: on the pixels of the image. The prediction is brought back to them, the ground truth is left alone.
* `official-1024`: as the official `eval.py` does, on the square frame of the model (side 1024 in the published one). The
  ground truth is stretched to the square, bilinear in uint8, while the prediction stays in its padded frame: for
  an image that is not square the two do not lie on each other. For comparison with published numbers only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

ORIGINAL = "original"
OFFICIAL = "official-1024"
RULES = (ORIGINAL, OFFICIAL)


def pair_by_order(predicted: Sequence[np.ndarray], count: int, shape: tuple[int, int]) -> list[np.ndarray]:
    """`count` masks bool [h, w] to hold against the ground truth, from any number of predicted ones (see the module)."""
    if not predicted:
        return [np.zeros(shape, bool)] * count
    return [predicted[min(i, len(predicted) - 1)] for i in range(count)]


def intersection_union(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Pixels in both and in either of two masks bool [h, w]."""
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of different sizes cannot be compared: {predicted.shape} and {truth.shape}")
    return int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth))


def stretch_truth(mask: np.ndarray, size: int) -> np.ndarray:
    """A ground-truth mask [h, w] on the square frame of `size`, bool, by the rule `official-1024`.

    PyTorch's bilinear `interpolate` of a uint8 mask on a CPU resamples the columns, rounds, resamples the rows and rounds again:
    "> 0" afterwards is "at least half", twice.
    """
    foreground = mask != 0
    for axis in (1, 0):
        n = foreground.shape[axis]
        if n == size:
            continue
        at = np.maximum((np.arange(size) + 0.5) * (n / size) - 0.5, 0)
        low = np.minimum(at.astype(np.int64), n - 1)
        high = np.minimum(low + 1, n - 1)
        fraction = (at - low)[:, None] if axis == 0 else at - low
        blend = foreground.take(low, axis) * (1 - fraction) + foreground.take(high, axis) * fraction
        # PyTorch computes this in fixed point, where exactly half is exact.
        foreground = blend >= 0.5 - 1e-9
    return foreground


class Comparison(NamedTuple):
    """One record: masks in its answer, and for each of its ground-truth masks the pixels in both it and its prediction, and in either."""

    predicted: int
    pairs: tuple[tuple[int, int], ...]


def compare(predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> Comparison:
    """Holds the predicted masks of a record against the ground truth, all bool [h, w] of one size."""
    paired = pair_by_order(predicted, len(truth), truth[0].shape if truth else (0, 0))
    return Comparison(len(predicted), tuple(intersection_union(mask, target) for mask, target in zip(paired, truth, strict=True)))


@dataclasses.dataclass
class Score:
    """Sums over records, from which the figures of a report come.

    `empty` counts records that were answered without any mask, `predicted` the masks in the answers before pairing.
    """

    records: int = 0
    masks: int = 0
    predicted: int = 0
    empty: int = 0
    iou_sum: float = 0.0
    intersection: int = 0
    union: int = 0

    def add(self, record: Comparison) -> None:
        """Counts one record. The order of records is part of the result: floating-point sums depend on it."""
        self.records += 1
        self.predicted += record.predicted
        self.empty += not record.predicted
        for intersection, union in record.pairs:
            self.masks += 1
            self.iou_sum += intersection / union if union else 1.0
            self.intersection += intersection
            self.union += union

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    @property
    def giou(self) -> float | None:
        """Mean IoU over the ground-truth masks; None without any."""
        return self.iou_sum / self.masks if self.masks else None

    @property
    def ciou(self) -> float | None:
        """Sum of intersections over sum of unions; None without any mask, 1 where every union is empty."""
        if not self.masks:
            return None
        return self.intersection / self.union if self.union else 1.0

    @property
    def empty_share(self) -> float | None:
        """Share of records that were answered without a mask."""
        return self.empty / self.records if self.records else None

    def to_dict(self) -> dict[str, Any]:
        """The figures of a report."""
        return {
            "records": self.records,
            "masks": self.masks,
            "predicted_masks": self.predicted,
            "gIoU": self.giou,
            "cIoU": self.ciou,
            "empty_answers": self.empty_share,
        }
