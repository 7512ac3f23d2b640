"""A checkpoint folder of this project (Orbax) -> a folder that the reference and its PyTorch libraries load.

`merged` is what the reference's own `merge_lora_weights_and_save_hf_model.py` leaves: config.json, the tokenizer and every tensor of the
network under its name, adapters merged, as safetensors (transformers takes them for `from_pretrained` like .bin files).

`adapter` is what its training leaves beside the frozen weights, in the two files in which PEFT and the LLaVA family keep it:
adapter_config.json and adapter_model.safetensors with PEFT's names, and non_lora_trainables.bin with the parameters that are trained as
they are. The latter is a `.bin`, since the loaders of that family open exactly this name with `torch.load`.

A few layers are in memory at a time. The files that are read are compared with their checksums meanwhile; damage is found before the
target appears.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.array_trees import tree_shapes
from segearth_r2_jax.checkpoints.checksums import array_checksum
from segearth_r2_jax.checkpoints.chunk_files import FileLeaf
from segearth_r2_jax.checkpoints.conversion_report import Entry, Report, make_report
from segearth_r2_jax.checkpoints.json_files import write_json
from segearth_r2_jax.checkpoints.key_rules import KeyMap, Part, Rule, Unused, check_tree
from segearth_r2_jax.checkpoints.lazy_leaf import LazyLeaf, Piece
from segearth_r2_jax.checkpoints.leaf_reader import LeafReader, StoredTree
from segearth_r2_jax.checkpoints.lora import arithmetic, merge
from segearth_r2_jax.checkpoints.output_folder import built_aside, check_target
from segearth_r2_jax.checkpoints.reference_config import EXTRA, REFERENCE_TEMPLATE, reference_config
from segearth_r2_jax.checkpoints.reused_memory import ReusedMemory
from segearth_r2_jax.checkpoints.sealed_folder import is_whole
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map, segearth_r2_rules
from segearth_r2_jax.checkpoints.sources.tokenizer_files import TOKENIZER_FILES
from segearth_r2_jax.checkpoints.torch_files.safetensors_writer import (
    Layout,
    write_safetensors,
    write_safetensors_file,
)
from segearth_r2_jax.checkpoints.torch_files.torch_writer import write_torch_file
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import unflatten
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

FORMATS = ("merged", "adapter")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
NON_LORA_TRAINABLES = "non_lora_trainables.bin"
# PEFT wraps the model twice.
PEFT_PREFIX = "base_model.model."
# What the reference trains as it is; a run of this project may train more, which then lies in its steps.
_TRAINED_IN_FULL = ("lm_head", "pixel_decoder", "predictor", "SEG_token_projector")


class Export:
    """A checkpoint folder on its way to PyTorch, understood and checked: its shapes are those of its network. No value is read yet."""

    def __init__(self, source: Path, *, form: str = "merged", dtype: np.typing.DTypeLike | None = None):
        """Of the folder `source` the newest step's parameters are taken where it has steps. Tensors that the reference stores without
        using go along if an import kept them.

        form: one of `FORMATS`, see above.
        dtype: of all floating-point tensors; by default as stored. Adapters are merged in float32 and rounded once.

        Raises:
            UserError: the source is not a whole checkpoint of this network; it has no adapters to write.
        """
        if form not in FORMATS:
            raise UserError(f"--format {form}: expected one of {', '.join(FORMATS)}")
        self.source, self.form = source, form
        self._settings, self._config = manager.read_config(source), manager.read_model_config(source)
        if form == "adapter" and self._config.phi.lora is None:
            raise UserError(f"{source}: has no low-rank adapters; --format merged writes its weights")
        self._outgoing = _Outgoing(source, self._config, form, dtype)
        self.template: str = self._settings.get("template", REFERENCE_TEMPLATE)

    @property
    def nbytes(self) -> int:
        """Of all tensors that are written."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._outgoing.layout.values())

    def report(self) -> Report:
        """What becomes of every tensor; with the checksums of those that have been read so far."""
        what = {"merged": "PyTorch", "adapter": "PyTorch, adapters and what is trained beside them"}[self.form]
        return make_report(f"checkpoint folder -> {what}", self._outgoing.keys, self._outgoing.entries.values(), self.template)

    def write(
        self, target: Path, *, force: bool = False, max_shard_bytes: float = 5e9, written: Callable[[int], None] | None = None
    ) -> Report:
        """Write the folder; it appears when it is whole.

        written: is told the bytes of every tensor that has been written.

        Raises:
            UserError: a file of the source is damaged; a value does not fit into the dtype; the target exists and `force` is not given,
                or cannot be written.
        """
        check_target(target, [self.source], force=force)
        outgoing, told = self._outgoing, written or (lambda size: None)
        with built_aside(target) as folder, _compared_meanwhile(outgoing.trees):
            if self.form == "merged":
                write_safetensors(folder, outgoing.stream(outgoing.layout, told), outgoing.layout, max_shard_bytes=max_shard_bytes)
            else:
                base = str((self._settings.get("reference") or {}).get("_name_or_path") or "")
                _write_adapter(folder, outgoing, self._config.phi.lora, base, told)
            write_json(folder / "config.json", self._content())
            for name in TOKENIZER_FILES:
                if (self.source / name).is_file():
                    shutil.copyfile(self.source / name, folder / name)
        return self.report()

    def _content(self) -> dict[str, Any]:
        """The reference's config.json."""
        content = reference_config(without_adapters(self._config), self._settings.get("reference"))
        content[EXTRA]["template"] = self.template
        content.pop("torch_dtype", None)
        layout = self._outgoing.layout
        stored_as = {layout[name][1].name for name, parts in self._outgoing.keys.parts.items() if parts}
        if len(stored_as) == 1:
            content["torch_dtype"] = stored_as.pop()
        return content


class _Outgoing:
    """The reference's tensors of a checkpoint folder, read and laid out one at a time.

    keys: the table of the tensors that are written; layout: their shapes and dtypes, in the order in which they are quick to read;
    trees: the folders of arrays that they come from; entries: the report's lines, with the checksums of what has been read.
    """

    def __init__(self, source: Path, config: SegEarthR2Config, form: str, dtype: np.typing.DTypeLike | None):
        stored = manager.stored_leaves(source)
        if not stored:
            raise UserError(f"{source}: no parameters there (neither a whole base/ nor a whole step under steps/)")
        check_tree({path: leaf.shape for path, (_, leaf) in stored.items()}, key_map(config).leaves, str(source))
        self._source = manager.absolute(source)
        self._trees = {path: tree for path, (tree, _) in stored.items()}
        self._dtypes = {path: np.dtype(leaf.dtype) for path, (_, leaf) in stored.items()}
        self._lora = config.phi.lora if form == "merged" else None
        self._dtype = None if dtype is None else np.dtype(dtype)
        unused_tree = self._source / "unused"
        unused = tree_shapes(unused_tree) if is_whole(unused_tree) else {}
        self._readers: dict[str, LeafReader | FileLeaf] = {}
        if form == "merged":
            self.keys = _table(segearth_r2_rules(without_adapters(config)), stored)
        else:
            trained = {path for path, tree in self._trees.items() if tree.name == "trainable"}
            rules = [rule for rule in segearth_r2_rules(config) if _is_trained(rule, trained)]
            self.keys = _table(rules, stored)
        self._unused = {name: unused_tree for name in unused if name.split(":")[0] in self.keys.parts}
        self._dtypes |= {name: np.dtype(unused[name].dtype) for name in self._unused}
        if form == "merged" and (unknown := sorted(unused.keys() - self._unused.keys())):
            raise UserError(f"{unused_tree}: unknown tensor {unknown[0]}: no rule of this model names it")
        self.trees = {tree: StoredTree(tree) for tree in sorted({*self._trees.values(), *self._unused.values()})}
        self.layout: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for name, parts in self.keys.parts.items():
            if not parts and name in unused:
                self.layout[name] = tuple(unused[name].shape), self._stored_as(np.dtype(unused[name].dtype))
            elif parts:
                self.layout[name] = tuple(self.keys.shapes[name]), self._stored_as(self._dtype_of(parts))
        self.entries = {name: self._entry(name) for name in self.layout}

    def stream(self, names: Iterable[str], written: Callable[[int], None]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of `names`, in their layout. While one is written the next is laid out and the one after it read."""
        names = list(names)
        # Of the tensor that is written, of the next, and as it was read also of the one after that.
        read_into, laid_into = (itertools.cycle([ReusedMemory() for _ in range(count)]) for count in (3, 2))
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader, ThreadPoolExecutor(1, thread_name_prefix="lay_out") as layer:
            read = _one_ahead(reader, lambda item: self._read(*item), zip(names, read_into, strict=False))
            for name, values, crc in _one_ahead(layer, lambda item: self._lay_out(*item), zip(read, laid_into, strict=False)):
                yield name, values
                self.entries[name] = dataclasses.replace(self.entries[name], crc32c=f"{crc:08x}")
                written(values.nbytes)

    def _read(self, name: str, memory: ReusedMemory) -> tuple[str, list[np.ndarray], int]:
        """(name, the parts that it is joined from in PyTorch's order of axes, the checksum of the stored values); if there is one part,
        perhaps in `memory`"""
        parts = self.keys.parts[name]
        pieces, crc = [], 0
        for where, part in self._stored_parts(name):
            if where is None:
                pieces.append(np.zeros((part.stop - part.start, *self.layout[name][0][1:]), self._dtype_of(parts)))
                continue
            reader, own = self._reader(where), memory if len(parts) < 2 else ReusedMemory()
            values = reader.read(own) if part is None or part.index is None else reader.row(part.index, own)
            crc = array_checksum(values, crc)
            if part is not None and part.path is not None:
                if self._is_merged(part.path):
                    values = self._merged(part, values)
                values = values if part.layout is None else values.transpose(np.argsort(part.layout))
                if part.index == reader.shape[0] - 1:
                    reader.release()
            pieces.append(values)
        return name, pieces, crc

    def _lay_out(self, read: tuple[str, list[np.ndarray], int], memory: ReusedMemory) -> tuple[str, np.ndarray, int]:
        """(name, the values as they are written, perhaps in `memory`, the checksum of the stored ones)"""
        name, pieces, crc = read
        shape, dtype = self.layout[name]
        values = pieces[0]
        if len(pieces) > 1:
            # Rows that were kept for the way back may have been stored in another dtype than those that were since trained.
            stored = self._dtype_of(self.keys.parts[name])
            values = np.concatenate([piece.astype(stored, copy=False) for piece in pieces])
        if values.dtype != dtype or not values.flags.c_contiguous:
            leaf = LazyLeaf(shape, dtype, (Piece(values, name, None, None, None),), stacked=False)
            values = leaf.read([slice(None)] * leaf.ndim, memory.array(shape, dtype))
        return name, values, crc

    def _entry(self, name: str) -> Entry:
        parts = self.keys.parts[name]
        sources, transforms = [], []
        for where, part in self._stored_parts(name):
            if where is None:
                transforms.append("zeros for rows without use")
                continue
            sources.append(where if part is None or part.index is None else f"{where}[{part.index}]")
            if part is not None and part.path is not None:
                if self._is_merged(part.path):
                    transforms.append(f"merged with its adapter (times {self._lora.alpha / self._lora.rank:g})")
                if part.layout is not None:
                    transforms.append("axes in PyTorch's order")
        if len(parts) > 1:
            transforms.append(f"joined from {len(parts)}")
        path = next(part.path for part in parts if part.path) if parts else name
        stored = self._dtype_of(parts) if parts else self._dtypes[name]
        shape, dtype = self.layout[name]
        return Entry(
            key=name,
            file=str(self._tree(path).relative_to(self._source)),
            source=" + ".join(sources),
            goes=(name,),
            transform=", ".join(dict.fromkeys(transforms)) or "as stored",
            shape=shape,
            dtype=stored.name,
            stored_as=dtype.name,
        )

    def _stored_parts(self, name: str) -> Iterator[tuple[str | None, Part | None]]:
        """What a tensor is joined from: the stored leaf or unused tensor (None: rows that nobody kept), and the part; None: all of it."""
        for number, part in enumerate(self.keys.parts[name] or [None]):
            where = name if part is None else f"{name}:{number}" if part.path is None else part.path
            yield (None if part is not None and part.path is None and where not in self._unused else where), part

    def _is_merged(self, path: str) -> bool:
        parent, _, leaf = path.rpartition("/")
        return self._lora is not None and leaf == "kernel" and f"{parent}/lora_a" in self._trees

    def _merged(self, part: Part, kernel: np.ndarray) -> np.ndarray:
        parent = part.path.rpartition("/")[0]
        readers = [self._reader(f"{parent}/{adapter}") for adapter in ("lora_a", "lora_b")]
        a, b = (reader.read(ReusedMemory()) if part.index is None else reader.row(part.index, ReusedMemory()) for reader in readers)
        return merge(kernel, a, b, self._lora, dtype=arithmetic(kernel, a, b))

    def _dtype_of(self, parts: tuple[Part, ...]) -> np.dtype:
        """The dtype in which the used part of a tensor is stored."""
        return self._dtypes[next(part.path for part in parts if part.path is not None)]

    def _stored_as(self, dtype: np.dtype) -> np.dtype:
        return dtype if self._dtype is None or not jnp.issubdtype(dtype, jnp.floating) else self._dtype

    def _tree(self, path: str) -> epath.Path:
        return self._trees[path] if path in self._trees else self._unused[path]

    def _reader(self, path: str) -> LeafReader:
        if path not in self._readers:
            self._readers[path] = self.trees[self._tree(path)].leaf(path)
        return self._readers[path]


def _write_adapter(folder: Path, outgoing: _Outgoing, lora: LoraConfig, base: str, written: Callable[[int], None]) -> None:
    adapters = [name for name in outgoing.layout if ".lora_" in name]
    others = [name for name in outgoing.layout if ".lora_" not in name]

    def named(names: list[str]) -> tuple[Iterator[tuple[str, np.ndarray]], Layout]:
        tensors = ((f"{PEFT_PREFIX}{name}", values) for name, values in outgoing.stream(names, written))
        return tensors, {f"{PEFT_PREFIX}{name}": outgoing.layout[name] for name in names}

    write_safetensors_file(folder / ADAPTER_WEIGHTS, *named(adapters))
    write_torch_file(folder / NON_LORA_TRAINABLES, *named(others))
    modules = [name.removesuffix(".lora_A.weight") for name in adapters if name.endswith(".lora_A.weight")]
    write_json(folder / ADAPTER_CONFIG, _adapter_config(lora, modules, base))


def _adapter_config(lora: LoraConfig, modules: list[str], base: str) -> dict[str, Any]:
    """The fields that PEFT has known since 0.5, which the reference uses."""
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "revision": None,
        # Whole names: "q_proj" alone would also name layers of the SigLIP tower.
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
    }


def _is_trained(rule: Rule | Unused, trained: set[str]) -> bool:
    if isinstance(rule, Unused):
        return rule.reference.startswith(_TRAINED_IN_FULL)
    in_full = any(word in rule.reference for word in _TRAINED_IN_FULL)
    return in_full or ".lora_" in rule.reference or bool(trained.intersection(path for path in rule.paths if path))


def _table(rules: list[Rule | Unused], stored: dict[str, tuple[epath.Path, jax.ShapeDtypeStruct]]) -> KeyMap:
    """The table of `rules`, which may be a part of the model's."""
    paths = [path for rule in rules if isinstance(rule, Rule) for path in rule.paths if path is not None]
    return KeyMap(rules, unflatten({path: stored[path][1] for path in paths}))


def without_adapters(config: SegEarthR2Config) -> SegEarthR2Config:
    return dataclasses.replace(config, phi=dataclasses.replace(config.phi, lora=None))


def _one_ahead(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map(function, items)`, where `pool` computes the next result while somebody works with one."""
    ahead: Future | None = None
    for item in items:
        before, ahead = ahead, pool.submit(function, item)
        if before is not None:
            yield before.result()
    if ahead is not None:
        yield ahead.result()


@contextlib.contextmanager
def _compared_meanwhile(trees: Mapping[epath.Path, StoredTree]) -> Iterator[None]:
    """Compares the trees with their checksums while something is made of them; at the end they are known to be undamaged. What is read file
    by file is not read again for it.

    Raises:
        UserError: they are damaged, whatever else went wrong because of it.
    """

    def compare(in_files: bool) -> None:
        for path, tree in trees.items():
            if tree.in_files == in_files:
                manager.require_undamaged(path, tree.sums)

    with ThreadPoolExecutor(1, thread_name_prefix="checksums") as pool:
        compared = pool.submit(compare, in_files=False)
        try:
            yield
        except Exception:
            compared.result()
            compare(in_files=True)
            raise
        compared.result()
        compare(in_files=True)
