"""The key-rule engine: what each kind of rule does in both directions, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from segearth_r2_jax.checkpoints.key_rules import CONV, LINEAR, KeyMap, Rule, Unused, conv, linear, norm, packed_linear
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import flatten, unflatten

RULES = [
    Rule("embed.weight", ("embed/table",)),
    *linear("layers.{i}.fc", "layers/fc", repeat=3),
    *norm("norm", "norm"),
    *conv("patch", "patch"),
    *packed_linear("cross.in_proj", ("cross/q", "cross/k", "cross/v")),
    *packed_linear("own.in_proj", (None, None, "own/v")),
    Unused("index", (4, 4)),
    Unused("query.weight", (None, 2)),
]
LEAVES = {
    "embed/table": (5, 2),
    "layers/fc/kernel": (3, 2, 4),
    "layers/fc/bias": (3, 4),
    "norm/scale": (2,),
    "norm/bias": (2,),
    "patch/kernel": (3, 5, 1, 2),
    "patch/bias": (2,),
    **{f"cross/{name}/kernel": (2, 2) for name in "qkv"},
    **{f"cross/{name}/bias": (2,) for name in "qkv"},
    "own/v/kernel": (2, 2),
    "own/v/bias": (2,),
}
REFERENCE = {
    "embed.weight": (5, 2),
    **{f"layers.{i}.fc.weight": (4, 2) for i in range(3)},
    **{f"layers.{i}.fc.bias": (4,) for i in range(3)},
    "norm.weight": (2,),
    "norm.bias": (2,),
    "patch.weight": (2, 1, 3, 5),
    "patch.bias": (2,),
    "cross.in_proj_weight": (6, 2),
    "cross.in_proj_bias": (6,),
    "own.in_proj_weight": (6, 2),
    "own.in_proj_bias": (6,),
    "index": (4, 4),
    "query.weight": (7, 2),
}


def tree(leaves: dict[str, tuple[int, ...]]) -> dict:
    return unflatten({path: SimpleNamespace(shape=shape) for path, shape in leaves.items()})


@pytest.fixture
def keys() -> KeyMap:
    return KeyMap(RULES, tree(LEAVES))


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in REFERENCE.items()}
    return {**weights, "index": np.arange(16).reshape(4, 4)}


def split(keys: KeyMap, weights) -> tuple[dict, dict]:
    parameters, unused = keys.to_parameters(weights)
    return {path: np.asarray(leaf) for path, leaf in parameters.items()}, {name: np.asarray(leaf) for name, leaf in unused.items()}


def test_shapes_of_the_reference_follow_from_those_of_the_model(keys):
    assert keys.shapes == {**REFERENCE, "query.weight": (None, 2)}


def test_each_rule_puts_the_right_numbers_in_the_right_place(keys, weights):
    parameters, unused = split(keys, weights)
    assert {path: leaf.shape for path, leaf in parameters.items()} == LEAVES
    np.testing.assert_array_equal(parameters["embed/table"], weights["embed.weight"])
    np.testing.assert_array_equal(parameters["layers/fc/kernel"][1], weights["layers.1.fc.weight"].T)
    np.testing.assert_array_equal(parameters["layers/fc/bias"][2], weights["layers.2.fc.bias"])
    np.testing.assert_array_equal(parameters["norm/scale"], weights["norm.weight"])
    assert parameters["patch/kernel"][2, 4, 0, 1] == weights["patch.weight"][1, 0, 2, 4]
    np.testing.assert_array_equal(parameters["cross/k/kernel"], weights["cross.in_proj_weight"][2:4].T)
    np.testing.assert_array_equal(parameters["cross/v/bias"], weights["cross.in_proj_bias"][4:6])
    np.testing.assert_array_equal(parameters["own/v/kernel"], weights["own.in_proj_weight"][4:6].T)
    assert set(unused) == {"index", "query.weight", *(f"own.in_proj_{kind}:{part}" for kind in ("weight", "bias") for part in (0, 1))}
    np.testing.assert_array_equal(unused["own.in_proj_weight:1"], weights["own.in_proj_weight"][2:4])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_there_and_back_is_bit_exact_in_every_dtype(keys, weights, dtype):
    """Also for what a conversion through another type would lose: a denormal, infinities, a NaN with a payload, minus zero."""
    stored = {name: weight.astype(dtype) if weight.dtype == np.float32 else weight for name, weight in weights.items()}
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    stored["embed.weight"].view(bits)[0] = [1, np.array(-0.0, dtype).view(bits)]
    stored["embed.weight"][1] = [np.inf, -np.inf]
    stored["embed.weight"].view(bits)[2] = np.array(np.nan, dtype).view(bits) | 5
    parameters, unused = split(keys, stored)
    back = dict(keys.to_reference(unflatten(parameters), unused))
    assert back.keys() == stored.keys()
    for name, weight in stored.items():
        assert (back[name].dtype, back[name].shape, back[name].tobytes()) == (weight.dtype, weight.shape, weight.tobytes())


def test_only_the_tensors_of_what_is_read_are_read(keys, weights):
    read = []

    class Lazy:
        def __init__(self, name):
            self.name, self.shape, self.dtype = name, weights[name].shape, weights[name].dtype

        def __array__(self, dtype=None, copy=None):
            read.append(self.name)
            return weights[self.name]

    parameters, _ = keys.to_parameters({name: Lazy(name) for name in weights})
    assert read == []
    row = parameters["layers/fc/kernel"].read((slice(1, 2), slice(None), slice(1, 3)))
    np.testing.assert_array_equal(row, weights["layers.1.fc.weight"].T[None, :, 1:3])
    assert read == ["layers.1.fc.weight"]


def test_unused_tensors_may_be_absent_but_needed_ones_may_not(keys, weights):
    present = {name: weight for name, weight in weights.items() if name not in ("index", "query.weight")}
    parameters, unused = split(keys, present)
    assert dict(keys.to_reference(unflatten(parameters), unused)).keys() == present.keys()
    without = {name: weight for name, weight in weights.items() if not name.startswith("layers.1")}
    with pytest.raises(UserError, match=r"missing key layers.1.fc.weight \(shape \[4, 2\]\), and 1 more"):
        keys.to_parameters(without)
    with pytest.raises(UserError, match=r"missing key layers.1.fc.weight"):
        keys.check({name: weight.shape for name, weight in without.items()})


def test_unused_rows_that_nobody_kept_are_zero(keys, weights):
    parameters, _ = split(keys, weights)
    packed = dict(keys.to_reference(unflatten(parameters)))["own.in_proj_weight"]
    assert not packed[:4].any()
    np.testing.assert_array_equal(packed[4:], weights["own.in_proj_weight"][4:])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("layers.3.fc.weight", (4, 2), r"unknown key layers.3.fc.weight \(shape \[4, 2\]\)"),
        ("lm_head.bias", (5,), "unknown key lm_head.bias"),
        ("layers.2.fc.weight", (2, 4), r"wrong shape of key layers.2.fc.weight: \[2, 4\], expected \[4, 2\]"),
        ("own.in_proj_weight", (4, 2), r"wrong shape of key own.in_proj_weight: \[4, 2\], expected \[6, 2\]"),
        ("query.weight", (7, 3), r"wrong shape of key query.weight: \[7, 3\], expected \[any, 2\]"),
        ("index", (16,), "wrong shape of key index"),
    ],
)
def test_unknown_keys_and_wrong_shapes_are_named(keys, weights, name, shape, message):
    changed = {**weights, name: np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match=message):
        keys.to_parameters(changed)
    with pytest.raises(UserError, match=message):
        keys.check({name: weight.shape for name, weight in changed.items()})


def test_a_stack_of_two_dtypes_is_refused(keys, weights):
    weights["layers.1.fc.weight"] = weights["layers.1.fc.weight"].astype(np.float16)
    with pytest.raises(UserError, match=r"layers.1.fc.weight is float16, but layers.0.fc.weight, a layer of the same stack, is float32"):
        keys.to_parameters(weights)


def test_the_way_back_refuses_trees_of_another_model(keys, weights):
    parameters, unused = split(keys, weights)
    with pytest.raises(UserError, match="missing parameter norm/bias"):
        list(keys.to_reference(unflatten({path: leaf for path, leaf in parameters.items() if path != "norm/bias"}), unused))
    with pytest.raises(UserError, match="unknown parameter layers/fc/lora_a"):
        list(keys.to_reference(unflatten({**parameters, "layers/fc/lora_a": np.zeros((3, 2, 1))}), unused))
    with pytest.raises(UserError, match=r"parameter norm/bias has shape \[3\], the model expects \[2\]"):
        list(keys.to_reference(unflatten({**parameters, "norm/bias": np.zeros(3)}), unused))
    with pytest.raises(UserError, match="unknown unused tensor other"):
        list(keys.to_reference(unflatten(parameters), {**unused, "other": np.zeros(1)}))


def test_a_table_that_does_not_fit_the_model_is_refused():
    leaf = tree({"a/kernel": (2, 3)})
    for rules, message in (
        ([], "no rule for the parameters a/kernel"),
        ([Rule("a", ("a/kernel",)), Rule("b", ("a/kernel",))], "a/kernel has two rules"),
        ([Rule("a", ("a/kernel",)), Unused("a", (1,))], "two rules for the reference tensor a"),
        ([Rule("a", ("a/kernel",)), Rule("b", ("b",))], "no parameter b"),
        ([Rule("a.{i}", ("a/kernel",), LINEAR, 4)], "4 tensors, but a/kernel has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            KeyMap(rules, leaf)
    with pytest.raises(ValueError, match="differ in shape"):
        KeyMap([Rule("a", ("q", "k"))], tree({"q": (2,), "k": (3,)}))
    with pytest.raises(ValueError, match="exactly if it has a repeat count"):
        Rule("a.{i}.weight", ("a",))
    with pytest.raises(ValueError, match="is an Unused"):
        Rule("a", (None, None), CONV)


def test_packed_layers_can_be_stacked():
    keys = KeyMap([Rule("l.{i}.qkv", ("q", None, "v"), LINEAR, 2)], tree({"q": (2, 3, 4), "v": (2, 3, 4)}))
    weights = {f"l.{i}.qkv": np.arange(36.0).reshape(12, 3) + 100 * i for i in range(2)}
    parameters, unused = split(keys, weights)
    np.testing.assert_array_equal(parameters["v"][1], weights["l.1.qkv"][8:].T)
    assert flatten(parameters).keys() == {"q", "v"}
    for name, array in keys.to_reference(parameters, unused):
        np.testing.assert_array_equal(array, weights[name])
