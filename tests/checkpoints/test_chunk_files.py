"""Trees of lazy leaves on the disk: Orbax's own files byte for byte, sealed without being read again, and mapped without being copied."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from etils import epath

from segearth_r2_jax.checkpoints import checksums, sealed_folder
from segearth_r2_jax.checkpoints.array_trees import load_tree, save_tree, tree_shapes
from segearth_r2_jax.checkpoints.chunk_files import FileLeaf
from segearth_r2_jax.checkpoints.lazy_leaf import LazyLeaf, Piece
from segearth_r2_jax.checkpoints.leaf_reader import LeafReader, StoredTree
from segearth_r2_jax.checkpoints.reused_memory import ReusedMemory
from segearth_r2_jax.errors import UserError

RNG = np.random.default_rng(0)
LEAVES = {
    "stack": RNG.normal(size=(5, 12, 8)).astype(np.float16),
    "matrix": RNG.normal(size=(37, 11)).astype(np.float32),
    "rounded": RNG.normal(size=(6, 6)).astype(ml_dtypes.bfloat16),
    "vector": RNG.normal(size=13),
    "number": np.array(7, np.int32),
}
# Small enough for several chunks of a leaf, some of which divide more than one axis.
CHUNK_BYTES = 96


def lazy(array: np.ndarray) -> LazyLeaf:
    return LazyLeaf(array.shape, array.dtype, (Piece(array, "one", None, None, None),), stacked=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trees") / "tree"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segearth_r2_jax.checkpoints.array_trees.CHUNK_BYTES", CHUNK_BYTES)
        save_tree(epath.Path(path), {"a": {name: lazy(array) for name, array in LEAVES.items()}})
    return path


def arrays(folder: Path) -> dict[str, bytes]:
    """The files of the arrays; Zarr's tables as what they say."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("a.*/*")}
    return {name: json.loads(data) if name.endswith(".zarray") else data for name, data in found.items()}


def test_the_files_are_those_that_orbax_writes(tree, tmp_path):
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, use_ocdbt=False)
    save_args = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), {"a": LEAVES})
    ocp.Checkpointer(handler).save(tmp_path / "orbax", args=ocp.args.PyTreeSave({"a": LEAVES}, save_args=save_args))
    ours, theirs = arrays(tree), arrays(tmp_path / "orbax")
    assert len(ours) > 30
    assert ours == theirs


def test_orbax_reads_them(tree):
    shapes = tree_shapes(epath.Path(tree))
    assert {name.removeprefix("a/"): (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == {
        name: (array.shape, array.dtype) for name, array in LEAVES.items()
    }
    for name, values in load_tree(epath.Path(tree), shapes).items():
        np.testing.assert_array_equal(values, LEAVES[name.removeprefix("a/")])


def test_the_seal_holds_what_reading_the_files_gives(tree):
    sealed = json.loads((tree / "files.json").read_text())["files"]
    assert {name for name in sealed if name.startswith("a.")} == set(arrays(tree))
    for name, entry in sealed.items():
        assert checksums.file_checksum(epath.Path(tree / name)) == (entry["bytes"], int(entry["crc32c"], 16))
    assert sealed_folder.find_damage(epath.Path(tree)) is None


@pytest.mark.parametrize("name", LEAVES)
def test_a_mapped_leaf_is_the_leaf(tree, name):
    leaf, array = StoredTree(tree).leaf(f"a/{name}"), LEAVES[name]
    assert isinstance(leaf, FileLeaf)
    assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(leaf.read(ReusedMemory()), array)
    for index in (*range(len(array)), 0) if array.ndim else ():
        np.testing.assert_array_equal(leaf.row(index, ReusedMemory()), array[index])
    leaf.release()
    np.testing.assert_array_equal(leaf.read(ReusedMemory()), array)


def test_a_stack_of_large_layers_is_divided_into_them_and_read_into_the_same_memory(tmp_path, monkeypatch):
    layers = RNG.normal(size=(3, 10, 20))
    leaf = LazyLeaf((3, 20, 10), layers.dtype, tuple(Piece(layer, "one", None, None, (1, 0)) for layer in layers), stacked=True)
    monkeypatch.setattr("segearth_r2_jax.checkpoints.array_trees.LARGE_BYTES", layers[0].nbytes)
    save_tree(epath.Path(tmp_path / "tree"), {"a": leaf})
    assert sorted(path.name for path in (tmp_path / "tree" / "a").iterdir()) == [".zarray", "0.0.0", "1.0.0", "2.0.0"]
    memory = ReusedMemory()
    leaf = StoredTree(tmp_path / "tree").leaf("a")
    first = leaf.row(1, memory)
    np.testing.assert_array_equal(first, layers[1].T)
    np.testing.assert_array_equal(leaf.row(2, memory), layers[2].T)
    np.testing.assert_array_equal(first, layers[2].T)


@pytest.mark.parametrize(("chunk", "width"), [(3, 5), (1, 2), (3, 2)])
def test_a_chunk_that_reaches_over_the_edge(tmp_path, chunk, width):
    """Orbax divides a leaf evenly; other writers need not."""
    array = RNG.normal(size=(7, 5)).astype(np.float32)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{tmp_path}/a/"}}
    metadata = {"shape": [7, 5], "chunks": [chunk, width], "dtype": "<f4", "compressor": None}
    ts.open({**spec, "metadata": metadata}, create=True).result().write(array).result()
    store = ts.open(spec, open=True, read=True).result()
    if chunk > 1 and width < 5:
        with pytest.raises(ValueError, match="parts of several rows"):
            FileLeaf(store)
        return
    leaf = FileLeaf(store)
    np.testing.assert_array_equal(leaf.read(ReusedMemory()), array)
    for index in (6, 0, 3):
        np.testing.assert_array_equal(leaf.row(index, ReusedMemory()), array[index])


@pytest.mark.parametrize("fault", ["missing", "cut off"])
def test_a_damaged_file_is_named(tree, tmp_path, fault):
    (tmp_path / "tree").symlink_to(tree)
    leaf = StoredTree(tmp_path / "tree").leaf("a/stack")
    file = sorted(tree.glob("a.stack/*"))[-1]
    content = file.read_bytes()
    try:
        file.unlink() if fault == "missing" else file.write_bytes(content[:-1])
        with pytest.raises(UserError, match=rf"{file.name}: (cannot be read|has {len(content) - 1} bytes instead)"):
            leaf.read(ReusedMemory())
        damage = "is missing" if fault == "missing" else f"has {len(content) - 1} bytes instead of {len(content)}"
        assert sealed_folder.find_damage(epath.Path(tree)) == f"a.stack/{file.name} {damage}"
    finally:
        file.write_bytes(content)


def test_compressed_and_ocdbt_trees_are_decoded(tmp_path):
    save_tree(epath.Path(tmp_path / "ocdbt"), LEAVES)
    handler = ocp.PyTreeCheckpointHandler(use_compression=True, use_ocdbt=False)
    ocp.Checkpointer(handler).save(tmp_path / "compressed", args=ocp.args.PyTreeSave(LEAVES))
    for folder in ("ocdbt", "compressed"):
        leaf = StoredTree(tmp_path / folder).leaf("stack")
        assert isinstance(leaf, LeafReader)
        np.testing.assert_array_equal(leaf.row(3, ReusedMemory()), LEAVES["stack"][3])
