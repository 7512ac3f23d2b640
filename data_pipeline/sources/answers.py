"""The answer of annotations whose data set gives an instruction and masks, but no answer.

SegEarth-R1, whose authors also made SegEarth-R2, trains on EarthReason, RRSIS-D and RefSegRS with "Sure, It is <seg>." or
"Sure. It is <seg>."; where an image holds nothing of what is asked for, its answer is the sentence of NO_TARGET. One form is used here
for every data set: "Sure, it is [SEG].", with one [SEG] per mask.
"""

from __future__ import annotations

from segearth_r2_jax.inputs.conversation import SEG_TOKEN

NO_TARGET = "There is no target object in the image."


def masks_answer(count: int) -> str:
    """The answer for `count` masks: "Sure, it is [SEG].", "Sure, it is [SEG], [SEG] and [SEG]."; NO_TARGET for none."""
    if count == 0:
        return NO_TARGET
    *others, last = [SEG_TOKEN] * count
    return f"Sure, it is {' and '.join([', '.join(others), last] if others else [last])}."
