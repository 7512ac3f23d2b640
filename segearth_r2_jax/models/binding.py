"""Between a module and its parameters as a plain nested dict.

Outside the networks parameters are nested dicts with string keys (`{"phi": {"layers": {"mlp": {"fc1": {"kernel": ...}}}}}`): the form
that the training state, the optimizer, the checkpoints and the converter share. A network is described once by its abstract module
(shapes only, nothing allocated) and bound to a dict where it runs, usually inside a jitted function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Keys:
    """In the place of `nnx.Rngs`, which counts its keys in a traced variable: with flax 0.12.8 each count costs more than the one before,
    14 s for the shapes of the 3B model against 1.5 s."""

    key: jax.Array
    count: int = dataclasses.field(default=0, metadata={"static": True})

    def params(self) -> jax.Array:
        self.count += 1
        return jax.random.fold_in(self.key, self.count)

    def split(self, n: int) -> _Keys:
        return _Keys(jax.random.split(self.params(), n))


def abstract_module(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """The module that `make` builds, with shapes in place of arrays."""
    return nnx.eval_shape(lambda: make(_Keys(jax.random.key(0))))


def init_params(make: Callable[[nnx.Rngs], nnx.Module], seed: int, shardings: Params | None = None) -> Params:
    """Freshly initialised parameters of the module that `make` builds, float32.

    `shardings`, a nested dict, says where they go, and which: only the parameters that it names are made.
    """

    def init() -> Params:
        params = flatten(module_params(make(_Keys(jax.random.key(seed)))))
        return unflatten(params if shardings is None else {path: params[path] for path in flatten(shardings)})

    # Run once: on a CPU it takes three times as long to compile with optimisation as without, and running it takes no time.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)()


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {"phi/layers/mlp/fc1/kernel": leaf}."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    params: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params


def _variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(module))}


def module_params(module: nnx.Module) -> Params:
    """The parameters of `module` as a nested dict (of arrays, or of shapes if the module is abstract)."""
    return unflatten({path: variable.get_value() for path, variable in _variables(module).items()})


def logical_axes(module: nnx.Module) -> Params:
    """The logical axis names of every parameter, in the structure of `module_params`; a stacked layer's parameters begin with "layers"."""
    axes = {}
    for path, variable in _variables(module).items():
        names, ndim = variable.get_metadata("logical_axes"), len(variable.get_value().shape)
        axes[path] = ("layers",) * (ndim - len(names)) + tuple(names)
    return unflatten(axes)


def bind(module: nnx.Module, params: Params) -> nnx.Module:
    """`module` (usually abstract) with its parameters taken from `params`.

    Raises:
        KeyError: `params` lacks a parameter of the module or has one that it does not know; the message names them.
    """
    graphdef, state = nnx.split(module)
    flat = flatten(params)
    paths = {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
    if flat.keys() != paths.keys():
        missing, unknown = sorted(paths.keys() - flat.keys()), sorted(flat.keys() - paths.keys())
        raise KeyError(f"parameters do not fit the model: missing {missing}, unknown {unknown}")
    new = [(path, variable.replace(flat["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(new))
