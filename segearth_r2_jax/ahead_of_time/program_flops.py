"""The matrix products that a traced program executes, counted in its jaxpr: recomputation, losses and sampling included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def program_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr, *, platform: str, while_trips: int = 1) -> float:
    """FLOPs (2 m k n) of all dot_general and convolutions of a program, over all its devices together.

    Loops count as often as they run, a kernel as often as its grid has cells (also those that it skips, as causal attention does with what
    lies in the future), and of several branches the dearest.

    Args:
        platform: "cpu", "tpu" or "cuda": of code that differs by platform, which branch counts.
        while_trips: how often the loops without a fixed number of rounds are assumed to run.
    """
    return sum(_equation_flops(equation, platform, while_trips) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _equation_flops(equation: Any, platform: str, while_trips: int) -> float:
    def inside(jaxpr: Any) -> float:
        return program_flops(jaxpr, platform=platform, while_trips=while_trips)

    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        # Every output element is a sum over the kernel's window and its input features, already those of one group.
        kernel = equation.invars[1].aval.shape
        features = params["dimension_numbers"].rhs_spec[0]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[features]
    if name == "scan":
        return params["length"] * inside(params["jaxpr"])
    if name == "while":
        return while_trips * (inside(params["body_jaxpr"]) + inside(params["cond_jaxpr"]))
    if name == "cond":
        return max(inside(branch) for branch in _branches(params, platform))
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * inside(params["jaxpr"])
    if name == "shard_map":
        return params["mesh"].size * inside(params["jaxpr"])
    return sum(inside(jaxpr) for jaxpr in _jaxprs(params))


def _branches(params: dict[str, Any], platform: str) -> list[Any]:
    """The branches that can run on `platform`."""
    by_platform = params.get("branches_platforms")
    if by_platform is None:
        return list(params["branches"])
    # None in the place of the platforms: the branch for all that no other names.
    named = [branch for platforms, branch in zip(by_platform, params["branches"], strict=True) if platforms and platform in platforms]
    return named or [branch for platforms, branch in zip(by_platform, params["branches"], strict=True) if platforms is None]


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (core.Jaxpr, core.ClosedJaxpr)):
                yield item
