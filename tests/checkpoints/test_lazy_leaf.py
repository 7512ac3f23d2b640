"""Leaves that are read while they are written: the same values as leaves in memory, from a tree on the disk or on a mesh."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from segearth_r2_jax.checkpoints import leaf_handler
from segearth_r2_jax.checkpoints.array_trees import load_tree, save_tree, tree_shapes
from segearth_r2_jax.checkpoints.lazy_leaf import LazyLeaf, Piece
from segearth_r2_jax.errors import UserError


class Stored:
    """A tensor that counts how often it is read."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, 0

    def __array__(self, dtype=None, copy=None):
        self.reads += 1
        return self.array


def stack(layers: int, rows: int, columns: int, dtype: type = np.float16) -> tuple[LazyLeaf, list[Stored], np.ndarray]:
    """A stacked leaf of transposed tensors, the tensors, and what the leaf is."""
    rng = np.random.default_rng(0)
    stored = [Stored(rng.normal(size=(columns, rows)).astype(dtype)) for _ in range(layers)]
    pieces = tuple(Piece(tensor, f"layers.{i}", 0, columns, (1, 0)) for i, tensor in enumerate(stored))
    return LazyLeaf((layers, rows, columns), np.dtype(dtype), pieces, stacked=True), stored, np.stack([s.array.T for s in stored])


def single(array: np.ndarray) -> LazyLeaf:
    return LazyLeaf(array.shape, array.dtype, (Piece(Stored(array), "one", None, None, None),), stacked=False)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int64])
def test_a_box_is_what_indexing_the_whole_gives(dtype):
    leaf, stored, whole = stack(3, 300, 520, dtype)  # larger than a tile, and no multiple of it
    np.testing.assert_array_equal(np.asarray(leaf), whole)
    for tensor in stored:
        tensor.reads = 0
    box = (slice(1, 2), slice(7, 290), slice(3, 500))
    np.testing.assert_array_equal(leaf.read(box), whole[box])
    assert [tensor.reads for tensor in stored] == [0, 1, 0]
    assert (leaf.ndim, leaf.size, leaf.nbytes) == (3, whole.size, whole.nbytes)


def test_a_convolution_is_transposed():
    array = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    leaf = LazyLeaf((4, 5, 3, 2), array.dtype, (Piece(array, "conv", None, None, (2, 3, 1, 0)),), stacked=False)
    np.testing.assert_array_equal(np.asarray(leaf), array.transpose(2, 3, 1, 0))


def test_a_cast_is_the_rounding_of_numpy_and_refuses_what_does_not_fit():
    leaf, stored, whole = stack(2, 30, 40, np.float32)
    np.testing.assert_array_equal(np.asarray(leaf.astype(np.float16)), whole.astype(np.float16))
    integers = single(np.arange(5))
    assert integers.astype(np.float16) is integers
    stored[1].array[3, 4] = 1e6
    with pytest.raises(UserError, match=r"key layers.1: its largest value 1e\+06 does not fit into float16"):
        np.asarray(leaf.astype(np.float16))
    stored[1].array[3, 4] = np.inf  # an infinity fits
    assert np.isinf(np.asarray(leaf.astype(np.float16))).sum() == 1


def test_a_tree_of_lazy_leaves_is_stored_as_one_of_arrays(tmp_path, monkeypatch):
    leaf, _, whole = stack(5, 64, 48)
    vector = np.arange(7, dtype=np.float32)
    told = []
    monkeypatch.setattr("segearth_r2_jax.checkpoints.array_trees.CHUNK_BYTES", whole.nbytes // 10)  # several chunks to a layer
    save_tree(epath.Path(tmp_path / "lazy"), {"a": {"kernel": leaf}, "b": single(vector), "c": vector}, told.append)
    save_tree(epath.Path(tmp_path / "arrays"), {"a": {"kernel": whole}, "b": vector, "c": vector})
    shapes = tree_shapes(epath.Path(tmp_path / "lazy"))
    assert shapes == tree_shapes(epath.Path(tmp_path / "arrays"))
    lazy, arrays = (load_tree(epath.Path(tmp_path / name), shapes) for name in ("lazy", "arrays"))
    for path, array in arrays.items():
        assert (lazy[path].dtype, lazy[path].tobytes()) == (array.dtype, array.tobytes())
    np.testing.assert_array_equal(lazy["a/kernel"], whole)
    assert sum(told) == whole.nbytes + vector.nbytes
    assert max(told) <= whole.nbytes // 10


def test_no_more_than_a_few_chunks_are_in_memory(tmp_path, monkeypatch):
    leaf, _, whole = stack(40, 64, 64)
    monkeypatch.setattr("segearth_r2_jax.checkpoints.array_trees.CHUNK_BYTES", whole[0].nbytes)
    held, most = [0], [0]
    read = LazyLeaf.read

    def counted(self, *args):
        held[0] += 1
        most[0] = max(most[0], held[0])
        return read(self, *args)

    def told(size):
        held[0] -= 1

    monkeypatch.setattr(LazyLeaf, "read", counted)
    save_tree(epath.Path(tmp_path / "tree"), {"a": leaf, "b": leaf}, told)
    assert held == [0]
    assert 1 <= most[0] <= leaf_handler.IN_FLIGHT


def test_what_cannot_be_read_leaves_no_tree(tmp_path):
    leaf, stored, _ = stack(2, 30, 40, np.float32)
    stored[1].array[0, 0] = 1e6
    with pytest.raises(UserError, match=r"key layers.1: its largest value"):
        save_tree(epath.Path(tmp_path / "tree"), {"a": leaf.astype(np.float16)})
    assert not (tmp_path / "tree").exists()


def check_parts_of_eight_devices() -> None:
    leaf, stored, whole = stack(4, 32, 16)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
    placed = leaf.place(NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    np.testing.assert_array_equal(np.asarray(placed), whole)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4, 8, 16)}
    assert {tensor.reads for tensor in stored} == {4}  # once for each different part, not for each device


def test_each_device_of_a_mesh_is_given_its_own_part():
    settings = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import test_lazy_leaf; test_lazy_leaf.check_parts_of_eight_devices()"
    result = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
