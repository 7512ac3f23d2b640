"""The reference's PyTorch weights -> a checkpoint folder of this project (Orbax), or straight onto a mesh.

The tensors stay in their files until the chunk of the leaf that they are part of is written (`lazy_leaf`), so that no more than a few
chunks are in memory, however large the network is.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.checksums import array_checksum
from segearth_r2_jax.checkpoints.conversion_report import DROPPED, Entry, Report, make_report, where_it_goes
from segearth_r2_jax.checkpoints.json_files import write_json
from segearth_r2_jax.checkpoints.key_rules import check_tree
from segearth_r2_jax.checkpoints.output_folder import built_aside, check_target
from segearth_r2_jax.checkpoints.reference_config import EXTRA, REFERENCE_TEMPLATE, config_from_reference
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import AS_STORED, Origin, ReferenceCheckpoint
from segearth_r2_jax.checkpoints.sources.tokenizer_files import write_tokenizer
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import Params, flatten, unflatten
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

# Every key of a conversion, in the folder that it made.
REPORT = "conversion.json"
# The memory of the source's pages is given back after so many bytes were written.
_RELEASE_BYTES = 256 << 20


class Import:
    """A reference checkpoint, understood and checked: every tensor has its place, none is missing. No value is read yet."""

    def __init__(self, checkpoint: ReferenceCheckpoint, *, dtype: np.typing.DTypeLike | None = None, template: str | None = None):
        """dtype: of the parameters; by default as stored. Tensors that the network does not use are kept as they are in any case.
        template: the prompt that the weights were trained with; by default what the source says, or the reference's own.

        Raises:
            UserError: the tensors are not those of the network that config.json describes.
        """
        self.checkpoint = checkpoint
        config = config_from_reference(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
        self.config: SegEarthR2Config = dataclasses.replace(config, phi=dataclasses.replace(config.phi, lora=checkpoint.lora))
        self.template: str = template or checkpoint.template or checkpoint.config.get(EXTRA, {}).get("template", REFERENCE_TEMPLATE)
        self._tensors = {name: _Summed(tensor) for name, tensor in checkpoint.tensors.items()}
        self._keys = key_map(self.config)
        self.leaves, self.unused = self._keys.to_parameters(self._tensors)
        if dtype is not None:
            self.leaves = {path: leaf.astype(dtype) for path, leaf in self.leaves.items()}

    @property
    def nbytes(self) -> int:
        """Of everything that is written."""
        return sum(leaf.nbytes for leaf in (*self.leaves.values(), *self.unused.values()))

    def report(self) -> Report:
        """What goes where; with the checksums of the tensors that have been read so far."""
        entries = [self._entry(name, tensor, self.checkpoint.origins[name]) for name, tensor in self._tensors.items()]
        dropped = [Entry(o.key, o.file, o.key, DROPPED, o.transform, (), "", "") for o in self.checkpoint.dropped]
        notes = []
        made = [o for o in self.checkpoint.origins.values() if o.transform != AS_STORED and not o.key]
        if made:
            notes.append(f"not in any file, made anew: {len(made)} tensors")
        if dropped:
            notes.append(f"in the files, not taken: {len(dropped)} tensors")
        return make_report(f"{self.checkpoint.kind} -> checkpoint folder", self._keys, [*entries, *dropped], self.template, notes)

    def _entry(self, name: str, tensor: _Summed, origin: Origin) -> Entry:
        paths = [part.path for part in self._keys.parts[name] if part.path is not None]
        stored_as = self.leaves[paths[0]].dtype if paths else tensor.dtype
        return Entry(
            key=name,
            file=origin.file,
            source=origin.key,
            goes=where_it_goes(self._keys, name),
            transform=origin.transform,
            shape=tensor.shape,
            dtype=tensor.dtype.name,
            stored_as=stored_as.name,
            crc32c=tensor.crc32c,
        )

    def write(self, target: Path, *, force: bool = False, written: Callable[[int], None] | None = None) -> Report:
        """Write the checkpoint folder; it appears when it is whole. The full report is its `conversion.json`.

        written: is told the bytes of every chunk that has been written.

        Raises:
            UserError: the target exists and `force` is not given; it cannot be written; a file of the source is damaged; a value does not
                fit into the dtype.
        """
        sources = [Path(origin.file) for origin in self.checkpoint.origins.values() if origin.file]
        check_target(target, [*dict.fromkeys(sources), self.checkpoint.folder], force=force)
        self._require_space(target)
        told = self._release_after(written or (lambda size: None))
        with built_aside(target) as partial:
            manager.save_base(partial, unflatten(self.leaves), told)
            manager.save_unused(partial, self.unused, told)
            settings = {"model": self.config.to_dict(), "template": self.template, "mask_canvas": self.config.image_size}
            manager.write_config(partial, {**settings, "reference": self.checkpoint.config})
            if self.checkpoint.tokenizer is not None:
                write_tokenizer(self.checkpoint.tokenizer, partial)
            report = self.report()
            write_json(partial / REPORT, report.to_dict())
        return report

    def place(self, abstract_params: Params, dtype: np.typing.DTypeLike, *, select: str = "") -> Params:
        """The parameters as `dtype` on the devices that the leaves of `abstract_params` (shape, sharding) name. Every process reads only
        what its own devices hold.

        select: a regular expression; only the parameters in whose path it is found are looked at, here and in `abstract_params`.

        Raises:
            UserError: the network that `abstract_params` belongs to is another one; a value does not fit into the dtype.
        """
        leaves = {path: leaf for path, leaf in self.leaves.items() if re.search(select, path)}
        wanted = {path: leaf for path, leaf in flatten(abstract_params).items() if re.search(select, path)}
        where = str(self.checkpoint.folder)
        check_tree({path: leaf.shape for path, leaf in leaves.items()}, {path: leaf.shape for path, leaf in wanted.items()}, where)
        told = self._release_after(lambda size: None)
        placed = {}
        for path, leaf in wanted.items():
            placed[path] = leaves[path].astype(dtype).place(leaf.sharding)
            told(leaves[path].nbytes)
        return unflatten(placed)

    def _release_after(self, written: Callable[[int], None]) -> Callable[[int], None]:
        since = 0

        def told(size: int) -> None:
            nonlocal since
            since += size
            if since >= _RELEASE_BYTES:
                since = 0
                for file in {file for tensor in self.checkpoint.tensors.values() for file in tensor.files}:
                    file.release()
            written(size)

        return told

    def _require_space(self, target: Path) -> None:
        parent = next(folder for folder in target.absolute().parents if folder.is_dir())
        if (free := shutil.disk_usage(parent).free) < self.nbytes:
            raise UserError(f"{target}: {self.nbytes:,} bytes are needed there, {free:,} are free")


class _Summed:
    """A tensor of the source that knows its checksum once it has been read."""

    def __init__(self, tensor: LazyTensor):
        self._tensor, self._lock = tensor, threading.Lock()
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.crc32c: str | None = None

    def __array__(self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        array = self._tensor.load()
        with self._lock:
            if self.crc32c is None:
                self.crc32c = f"{array_checksum(array):08x}"
        return array if dtype is None else array.astype(dtype, copy=False)
