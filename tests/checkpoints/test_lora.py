"""Adapters into kernels and out again: PEFT's arithmetic, and bounds on what rounding leaves."""

from __future__ import annotations

import numpy as np
import pytest

from segearth_r2_jax.checkpoints.lora import merge, merge_lora, unmerge
from segearth_r2_jax.models.layers import LoraConfig

LAYERS, IN, OUT = 3, 48, 64


def adapter(rank: int, size: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((LAYERS, IN, rank)), rng.standard_normal((LAYERS, rank, OUT))
    return (a * size).astype(np.float32), b.astype(np.float32)


def kernels(dtype: np.typing.DTypeLike) -> np.ndarray:
    """Values of every magnitude that the dtype has around a layer's usual 0.02, and the smallest."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((LAYERS, IN, OUT)) * 10.0 ** rng.uniform(-8, 0, (LAYERS, IN, OUT))
    values[0, 0, :4] = 0.0, -0.0, 6e-8, -6e-8
    return values.astype(dtype)


def ulp(x: np.ndarray) -> np.ndarray:
    return np.spacing(np.abs(x).astype(np.float32)).astype(np.float64)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 16.0), (8, 16.0), (3, 7.0)])
def test_merging_is_what_peft_computes(rank, alpha):
    """W + (B A) * (alpha / r) on [out, in] weights, by PyTorch itself."""
    torch = pytest.importorskip("torch", reason="torch is not installed: its sum is not compared")
    kernel, (a, b) = kernels(np.float32), adapter(rank)
    merged = merge(kernel, a, b, LoraConfig(rank=rank, alpha=alpha))
    for i in range(LAYERS):
        weight, lora_a, lora_b = (torch.from_numpy(x[i].T.copy()) for x in (kernel, a, b))
        theirs = (weight + (lora_b @ lora_a) * (alpha / rank)).numpy().T
        products = np.abs(a[i].astype(np.float64)) @ np.abs(b[i].astype(np.float64)) * alpha / rank
        bound = (rank + 1) * 2.0**-24 * products + ulp(theirs)
        assert (np.abs(merged[i].astype(np.float64) - theirs) <= bound).all()


def test_merging_adds_the_scaled_product():
    kernel, (a, b) = kernels(np.float64), adapter(4)
    merged = merge(kernel, a, b, LoraConfig(rank=4, alpha=6.0), dtype=np.float64)
    np.testing.assert_allclose(merged, kernel + 1.5 * np.einsum("lir,lro->lio", a.astype(np.float64), b), rtol=0, atol=1e-14)
    assert merged.dtype == np.float64
    assert not np.array_equal(merged, kernel)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e2])
def test_a_float32_kernel_comes_back_to_half_a_unit_of_what_was_stored(size):
    lora, kernel, (a, b) = LoraConfig(rank=4, alpha=16.0), kernels(np.float32), adapter(4, size)
    merged = merge(kernel, a, b, lora)
    back = unmerge(merged, a, b, lora)
    assert back.dtype == merged.dtype == np.float32
    error = np.abs(back.astype(np.float64) - kernel)
    assert (error <= (ulp(merged) + ulp(kernel)) / 2).all()
    # The bound is sharp: without the adapter's size in it, it does not hold.
    assert size < 1 or (error > ulp(kernel)).any()


def test_a_float16_kernel_comes_back_bit_for_bit():
    lora, kernel, (a, b) = LoraConfig(rank=4, alpha=16.0), kernels(np.float16), adapter(4, 1e-3)
    kernel[np.abs(kernel) > 0.25] /= 8
    merged = merge(kernel, a, b, lora)
    assert np.abs(merged).max() < 0.5
    back = unmerge(merged, a, b, lora).astype(np.float16)
    # A zero's sign is the only thing that a sum forgets.
    np.testing.assert_array_equal(back, kernel)
    assert not np.array_equal(merged.astype(np.float16), kernel)


def test_a_float16_kernel_under_a_large_update_comes_back_where_the_bound_says_and_in_float64_everywhere():
    lora, kernel, (a, b) = LoraConfig(rank=4, alpha=16.0), kernels(np.float16), adapter(4)
    merged = merge(kernel, a, b, lora)
    back = unmerge(merged, a, b, lora).astype(np.float16)
    promised = (np.abs(merged) < 0.5) | (np.abs(kernel.astype(np.float64)) >= np.abs(merged) * 2.0**-11)
    assert 0.3 < promised.mean() < 1
    np.testing.assert_array_equal(back[promised], kernel[promised])
    assert not np.array_equal(back, kernel)
    wide = unmerge(merge(kernel, a, b, lora, dtype=np.float64), a, b, lora, dtype=np.float64)
    np.testing.assert_array_equal(wide.astype(np.float16), kernel)


def test_a_tree_loses_its_adapters_and_keeps_its_dtypes():
    lora, (a, b) = LoraConfig(rank=4, alpha=16.0), adapter(4)
    kernel = kernels(np.float16)
    tree = {"q": {"kernel": kernel, "bias": np.ones(OUT), "lora_a": a, "lora_b": b}, "k": {"kernel": kernel}}
    merged = merge_lora(tree, lora)
    assert {name: set(part) for name, part in merged.items()} == {"q": {"kernel", "bias"}, "k": {"kernel"}}
    np.testing.assert_array_equal(merged["q"]["kernel"], merge(kernel, a, b, lora).astype(np.float16))
    assert merged["k"]["kernel"] is kernel
