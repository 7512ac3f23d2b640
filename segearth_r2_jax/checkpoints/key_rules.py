"""The engine that carries weights between PyTorch state dicts and parameter trees, in both directions, bit for bit.

A reference state dict is flat: dotted names, one tensor per layer, dense kernels [out, in], convolutions [out, in, kh, kw], the
projections of an attention packed in one tensor. A parameter tree here is nested: one leaf per kind of layer with a leading layer
dimension, dense kernels [in, out], convolutions [kh, kw, in, out]. A *rule* states one correspondence and is read in both
directions; a *table* is the list of rules of a model (`segearth_r2_rules`).

    Rule("model.embed_tokens.weight", ("phi/embed_tokens/table",))                          one tensor, one leaf
    Rule("model.layers.{i}.mlp.fc1.weight", ("phi/layers/mlp/fc1/kernel",), LINEAR, 32)     32 tensors, the rows of one leaf
    Rule("a.in_proj_weight", ("a/q/kernel", "a/k/kernel", "a/v/kernel"), LINEAR)            one tensor, three leaves
    Rule("b.in_proj_weight", (None, None, "b/v/kernel"), LINEAR)                            two thirds of it are unused
    Unused("predictor.query_feat.weight", (None, 256))                                      no leaf; kept for the way back

On the way in nothing is read: `KeyMap.to_parameters` gives leaves that know where their values are (`lazy_leaf`). On the way out
`KeyMap.to_reference` gives tensor by tensor. No value is computed with, so dtypes and bits are kept; who wants another dtype casts the
leaves on their way in or the tensors on their way out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from segearth_r2_jax.checkpoints.lazy_leaf import LazyLeaf, Piece
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import flatten

# A layout is the permutation that makes a reference tensor ours; None leaves it as it is.
Layout = tuple[int, ...] | None
SAME: Layout = None
LINEAR: Layout = (1, 0)  # [out, in] -> [in, out]
CONV: Layout = (2, 3, 1, 0)  # [out, in, kh, kw] -> [kh, kw, in, out]

Shape = tuple[int | None, ...]  # None: any size


@dataclasses.dataclass(frozen=True)
class Rule:
    """One correspondence between reference tensors and leaves.

    reference: name of the tensor; with `{i}` it stands for `repeat` tensors, which are the rows of a stacked leaf.
    paths: the leaves "a/b/c" that the tensor holds, as equal parts of its first dimension; None marks a part that no leaf takes.
    """

    reference: str
    paths: tuple[str | None, ...]
    layout: Layout = SAME
    repeat: int | None = None

    def __post_init__(self):
        if ("{i}" in self.reference) != (self.repeat is not None):
            raise ValueError(f"{self.reference}: a rule has {{i}} in its name exactly if it has a repeat count")
        if not any(self.paths):
            raise ValueError(f"{self.reference}: a rule without leaves is an Unused")


@dataclasses.dataclass(frozen=True)
class Unused:
    """A tensor that the reference stores and never computes with: accepted if present, kept bit for bit, given back."""

    reference: str
    shape: Shape


class Part(NamedTuple):
    """Rows [start, stop) of a reference tensor and the leaf they are (row `index` of it, if it is stacked); no leaf: unused."""

    start: int
    stop: int
    path: str | None
    index: int | None
    layout: Layout


def linear(reference: str, path: str, *, bias: bool = True, repeat: int | None = None) -> list[Rule]:
    """The rules of a dense layer: `weight` [out, in] <-> `kernel` [in, out], and `bias`."""
    rules = [Rule(f"{reference}.weight", (f"{path}/kernel",), LINEAR, repeat)]
    return [*rules, Rule(f"{reference}.bias", (f"{path}/bias",), SAME, repeat)] if bias else rules


def conv(reference: str, path: str) -> list[Rule]:
    """The rules of a convolution: `weight` [out, in, kh, kw] <-> `kernel` [kh, kw, in, out], and `bias`."""
    return [Rule(f"{reference}.weight", (f"{path}/kernel",), CONV), Rule(f"{reference}.bias", (f"{path}/bias",))]


def norm(reference: str, path: str, *, repeat: int | None = None) -> list[Rule]:
    """The rules of a normalisation: `weight` <-> `scale`, and `bias`."""
    return [Rule(f"{reference}.weight", (f"{path}/scale",), SAME, repeat), Rule(f"{reference}.bias", (f"{path}/bias",), SAME, repeat)]


def packed_linear(reference: str, paths: Sequence[str | None]) -> list[Rule]:
    """The rules of dense layers packed in one, as `in_proj_weight` and `in_proj_bias` of torch's MultiheadAttention are."""
    kernels = tuple(path and f"{path}/kernel" for path in paths)
    biases = tuple(path and f"{path}/bias" for path in paths)
    return [Rule(f"{reference}_weight", kernels, LINEAR), Rule(f"{reference}_bias", biases)]


def fits(shape: Sequence[int], expected: Shape) -> bool:
    """Whether `shape` is the expected one."""
    return len(shape) == len(expected) and all(b is None or a == b for a, b in zip(shape, expected, strict=True))


class KeyMap:
    """A table of rules, bound to the shapes of a model's parameters.

    shapes: the shape that every reference tensor must have, by name.
    parts: what every reference tensor holds, by name (an unused tensor holds nothing).
    """

    def __init__(self, rules: Iterable[Rule | Unused], parameters: Mapping[str, Any]):
        """`parameters`: the model's tree, nested; its leaves need a `shape` only.

        Raises:
            ValueError: the table does not fit the tree (a name or a leaf named twice, a leaf without a rule or the reverse).
        """
        self.leaves: dict[str, tuple[int, ...]] = {path: tuple(leaf.shape) for path, leaf in flatten(parameters).items()}
        self.shapes: dict[str, Shape] = {}
        self.parts: dict[str, tuple[Part, ...]] = {}
        taken: set[str] = set()
        for rule in rules:
            if isinstance(rule, Unused):
                self._enter(rule.reference, rule.shape, ())
                continue
            used = [path for path in rule.paths if path is not None]
            for path in used:
                if path not in self.leaves:
                    raise ValueError(f"{rule.reference}: the model has no parameter {path}")
                if path in taken:
                    raise ValueError(f"{rule.reference}: parameter {path} has two rules")
                taken.add(path)
            self._enter_rule(rule, used)
        if missing := sorted(self.leaves.keys() - taken):
            raise ValueError(f"no rule for the parameters {', '.join(missing)}")

    def _enter_rule(self, rule: Rule, used: list[str]) -> None:
        shapes = {self.leaves[path] for path in used}
        if len(shapes) != 1:
            raise ValueError(f"{rule.reference}: the parts of a packed tensor differ in shape: {sorted(shapes)}")
        shape = shapes.pop()
        if rule.repeat is not None:
            if shape[:1] != (rule.repeat,):
                raise ValueError(f"{rule.reference}: {rule.repeat} tensors, but {used[0]} has shape {shape}")
            shape = shape[1:]
        if rule.layout is not None:
            shape = tuple(shape[axis] for axis in np.argsort(rule.layout))
        rows = shape[0]
        for index in [None] if rule.repeat is None else range(rule.repeat):
            parts = tuple(Part(rows * n, rows * (n + 1), path, index, rule.layout) for n, path in enumerate(rule.paths))
            name = rule.reference if index is None else rule.reference.format(i=index)
            self._enter(name, (rows * len(parts), *shape[1:]), parts)

    def _enter(self, name: str, shape: Shape, parts: tuple[Part, ...]) -> None:
        if name in self.shapes:
            raise ValueError(f"two rules for the reference tensor {name}")
        self.shapes[name] = shape
        self.parts[name] = parts

    def to_parameters(self, tensors: Mapping[str, Any]) -> tuple[dict[str, LazyLeaf], dict[str, LazyLeaf]]:
        """The leaves by path, and by name the tensors (or parts of one, "name:part") that the network does not use; nothing is read yet.

        tensors: anything with a `shape` and a `dtype` that `numpy.asarray` can read, by name.

        Raises:
            UserError: a tensor is unknown, missing or wrongly shaped; the layers of a stack differ in dtype.
        """
        self.check({name: tensor.shape for name, tensor in tensors.items()})
        pieces: dict[str, list[Piece]] = {}
        unused: dict[str, LazyLeaf] = {}
        for name, parts in self.parts.items():
            if name not in tensors:
                continue
            tensor = tensors[name]
            if not parts:
                unused[name] = LazyLeaf(tuple(tensor.shape), tensor.dtype, (Piece(tensor, name, None, None, None),), stacked=False)
            for number, part in enumerate(parts):
                piece = Piece(tensor, name, part.start, part.stop, part.layout)
                if part.path is None:
                    shape = (part.stop - part.start, *tensor.shape[1:])
                    unused[_part_name(name, number)] = LazyLeaf(
                        shape, tensor.dtype, (dataclasses.replace(piece, layout=None),), stacked=False
                    )
                else:
                    pieces.setdefault(part.path, []).append(piece)
        leaves = {}
        for path, shape in self.leaves.items():
            first, *others = pieces[path]
            if other := next((piece for piece in others if piece.tensor.dtype != first.tensor.dtype), None):
                raise UserError(
                    f"{other.name} is {other.tensor.dtype}, but {first.name}, a layer of the same stack, is {first.tensor.dtype}; "
                    "convert to one dtype"
                )
            stacked = self.parts[first.name][0].index is not None
            leaves[path] = LazyLeaf(shape, first.tensor.dtype, tuple(pieces[path]), stacked)
        return leaves, unused

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Whether a whole state dict, given by the shapes of its tensors, is one of this model.

        Raises:
            UserError: a tensor is unknown, has the wrong shape, or is missing.
        """
        for name, shape in shapes.items():
            if name not in self.shapes:
                raise UserError(f"unknown key {name} (shape {list(shape)}): no rule of this model names it")
            if not fits(shape, self.shapes[name]):
                expected = ", ".join("any" if size is None else str(size) for size in self.shapes[name])
                raise UserError(f"wrong shape of key {name}: {list(shape)}, expected [{expected}]")
        if missing := [name for name, parts in self.parts.items() if parts and name not in shapes]:
            raise UserError(f"missing key {missing[0]} (shape {list(self.shapes[missing[0]])}){_more(missing)}")

    def to_reference(self, parameters: Mapping[str, Any], unused: Mapping[str, Any] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Reference tensors by name, one at a time, from a nested tree of arrays and what `to_parameters` gave as unused.

        An unused tensor that is not given is left out. Of a packed tensor the unused part may not be left out: it is zero then, which
        changes nothing that the reference computes. It takes the dtype of the used part.

        Raises:
            UserError: a parameter is missing, unknown or wrongly shaped, or an unused tensor is unknown.
        """
        flat, unused = flatten(parameters), dict(unused or {})
        check_tree({path: leaf.shape for path, leaf in flat.items()}, self.leaves)
        for name, parts in self.parts.items():
            if not parts and name in unused:
                yield name, np.asarray(unused.pop(name))
            if not parts:
                continue
            pieces = [None if part.path is None else _take(flat[part.path], part) for part in parts]
            like = next(piece for piece in pieces if piece is not None)
            for number, piece in enumerate(pieces):
                if piece is None:
                    kept = unused.pop(_part_name(name, number), None)
                    pieces[number] = np.zeros_like(like) if kept is None else np.asarray(kept).astype(like.dtype)
            yield name, np.asarray(np.concatenate(pieces) if len(pieces) > 1 else pieces[0], order="C")
        if unused:
            raise UserError(f"unknown unused tensor {min(unused)}: no rule of this model names it{_more(unused)}")


def check_tree(shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], where: str = "the parameters") -> None:
    """Compare a tree's leaf shapes, by path, with those that the model has.

    Raises:
        UserError: names the first parameter that is missing, unknown or wrongly shaped in `where`.
    """
    if missing := sorted(expected.keys() - shapes.keys()):
        raise UserError(f"{where}: missing parameter {missing[0]} (shape {list(expected[missing[0]])}){_more(missing)}")
    if unknown := sorted(shapes.keys() - expected.keys()):
        raise UserError(f"{where}: unknown parameter {unknown[0]} (shape {list(shapes[unknown[0]])}){_more(unknown)}")
    for path, shape in expected.items():
        if tuple(shapes[path]) != tuple(shape):
            raise UserError(f"{where}: parameter {path} has shape {list(shapes[path])}, the model expects {list(shape)}")


def _take(leaf: Any, part: Part) -> np.ndarray:
    array = np.asarray(leaf if part.index is None else leaf[part.index])
    return array if part.layout is None else array.transpose(np.argsort(part.layout))


def _part_name(name: str, number: int) -> str:
    return f"{name}:{number}"


def _more(names: Iterable[str]) -> str:
    others = len(list(names)) - 1
    return f", and {others} more" if others > 0 else ""
