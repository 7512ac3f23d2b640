"""How arrays lie on devices while a network runs: it names their dimensions, and whoever has a mesh gives the names a meaning.

Outside of `placed` the names mean nothing: a network or a kernel runs anywhere and knows no mesh. A step for many devices opens `placed`
with the placement of its mesh (`sharding.rules.placement`) while it is traced. Without it XLA is free to split the width of an activation
instead of the batch, and to exchange whole activations between devices at every layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

Axes = tuple[str | None, ...]

# The names that an activation's dimension may carry.
ACTIVATION_AXES = ("batch", "heads", "mlp", "vocab", "lookup_batch", "lookup_features")


class Placement(NamedTuple):
    """activation: places an activation by the logical names of its dimensions; kernel: a kernel, from how it is kept to how it is used;
    per_device: see the function of that name.
    """

    activation: Callable[[jax.Array, Axes], jax.Array]
    kernel: Callable[[jax.Array, Axes], jax.Array]
    per_device: Callable[[Callable[..., Any], Sequence[Axes], Any], Callable[..., Any]]


_placement: ContextVar[Placement | None] = ContextVar("placement", default=None)


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Within it, `constrain` and `gathered` do what `placement` says."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """The activation `x`, to be placed by the logical names of its dimensions (None: whole on every device)."""
    placement = _placement.get()
    return x if placement is None else placement.activation(x, axes)


def gathered(kernel: jax.Array, axes: Axes) -> jax.Array:
    """A kernel for use: collected from the devices that keep a part of it each, in the dtype that it has by now."""
    placement = _placement.get()
    return kernel if placement is None else placement.kernel(kernel, axes)


def per_device(function: Callable[..., Any], inputs: Sequence[Axes], outputs: Any) -> Callable[..., Any]:
    """`function` of arrays, run by every device on its own part of them: for kernels that XLA cannot divide by itself.

    Args:
        function: computes nothing across the dimensions that are divided.
        inputs: the logical names of the dimensions of every argument.
        outputs: those of what it returns; a tuple of them if it returns a tuple.
    """
    placement = _placement.get()
    return function if placement is None else placement.per_device(function, inputs, outputs)
