"""A merged SegEarth-R2 checkpoint of the reference (PyTorch) <-> a checkpoint folder of this project (Orbax)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.json_files import read_json, write_json
from segearth_r2_jax.checkpoints.key_rules import KeyMap
from segearth_r2_jax.checkpoints.lora import merge_lora
from segearth_r2_jax.checkpoints.reference_config import EXTRA, config_from_reference, reference_config
from segearth_r2_jax.checkpoints.segearth_r2_rules import segearth_r2_rules
from segearth_r2_jax.checkpoints.torch_io import INDEX, SINGLE, read_safetensors, write_safetensors
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import abstract_module, module_params, unflatten
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

# The prompt with which the reference evaluates its own weights.
REFERENCE_TEMPLATE = "eval_llama2"

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did, in the reference's tensors.

    mapped: how many hold parameters, `parameters` leaves in all; kept: how many the network does not compute with.
    partly, unused, absent: which ones hold parameters and rows without use, which ones are kept, and which ones that the network does
        not compute with are not there.
    bytes: of all tensors written, by dtype.
    """

    mapped: int
    parameters: int
    kept: int
    partly: tuple[str, ...]
    unused: tuple[str, ...]
    absent: tuple[str, ...]
    bytes: dict[str, int]
    template: str

    def lines(self) -> list[str]:
        """The report as text."""
        return [
            f"keys: {self.mapped} mapped to {self.parameters} parameters, {self.kept} not used by the network and kept",
            *(f"  used in part: {names}" for names in self.partly),
            *(f"  not used: {names}" for names in self.unused),
            *(f"  not used, not there: {names}" for names in self.absent),
            "bytes: " + ", ".join(f"{size:,} {dtype}" for dtype, size in sorted(self.bytes.items())),
            f"prompt template: {self.template}",
        ]


def checkpoint_kind(source: Path) -> Literal["torch", "orbax"]:
    """What lies at `source`.

    Raises:
        UserError: nothing that can be converted, or both kinds at once.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    torch = source.is_file() or (source / SINGLE).is_file() or (source / INDEX).is_file()
    orbax = manager.has_base(source) or manager.latest_step(source) is not None
    if torch and orbax:
        raise UserError(f"{source}: holds PyTorch weights and an Orbax checkpoint; expected one of them")
    if not torch and not orbax:
        raise UserError(f"{source}: no weights there; expected {SINGLE} and config.json, or an Orbax checkpoint (base/ or steps/)")
    return "torch" if torch else "orbax"


def import_reference(
    source: Path, target: Path, *, dtype: np.typing.DTypeLike | None = None, template: str | None = None, force: bool = False
) -> Report:
    """A folder with `model.safetensors` (or one such file) and `config.json` -> a checkpoint folder.

    dtype: of the parameters; by default as stored. Tensors that the network does not use are kept as they are in any case.
    template: the prompt that the weights were trained with; by default what an earlier export wrote down, or the reference's own.

    Raises:
        UserError: the source is not a whole checkpoint of this network, or the target exists and `force` is not given.
    """
    _check_target(target, source, force)
    folder = source if source.is_dir() else source.parent
    tensors = read_safetensors(source)
    original = read_json(folder / "config.json")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = config_from_reference(original, shapes)
    keys = _key_map(config)
    keys.check(shapes)
    template = template or original.get(EXTRA, {}).get("template", REFERENCE_TEMPLATE)
    total: Counter[str] = Counter()

    parameters, unused = keys.to_parameters(tensors)
    if dtype is not None:
        parameters = {path: leaf.astype(dtype) for path, leaf in parameters.items()}
    for name, parts in keys.parts.items():
        if name in tensors:
            used = [parameters[part.path] for part in parts if part.path is not None]
            stored_as = used[0].dtype if used else tensors[name].dtype
            total[stored_as.name] += math.prod(tensors[name].shape) * stored_as.itemsize

    with _built_aside(target) as partial:
        manager.save_base(partial, unflatten(parameters))
        manager.save_unused(partial, unused)
        manager.write_config(
            partial, {"model": config.to_dict(), "template": template, "mask_canvas": config.image_size, "reference": original}
        )
        _copy_tokenizer(folder, partial)
    return _report(keys, tensors, total, template)


def export_reference(source: Path, target: Path, *, dtype: np.typing.DTypeLike | None = None, force: bool = False) -> Report:
    """A checkpoint folder -> a folder with `model.safetensors` (or shards) and `config.json` that the reference loads.

    Adapters are merged. Tensors that the reference stores without using are written if an import kept them.
    dtype: of all floating-point tensors; by default as stored.

    Raises:
        UserError: the source is not a whole checkpoint of this network, or the target exists and `force` is not given.
    """
    _check_target(target, source, force)
    settings = manager.read_config(source)
    config = manager.read_model_config(source)
    parameters = manager.load_parameters(source)
    if config.phi.lora is not None:
        parameters = merge_lora(parameters, config.phi.lora)
        config = dataclasses.replace(config, phi=dataclasses.replace(config.phi, lora=None))
    keys = _key_map(config)
    template = settings.get("template", REFERENCE_TEMPLATE)
    content = reference_config(config, settings.get("reference"))
    content[EXTRA]["template"] = template
    written: dict[str, str] = {}
    total: Counter[str] = Counter()

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, array in keys.to_reference(parameters, manager.load_unused(source)):
            array = array if dtype is None else _cast(name, array, dtype)
            written[name] = array.dtype.name
            total[array.dtype.name] += array.nbytes
            yield name, array

    with _built_aside(target) as partial:
        write_safetensors(partial, tensors())
        content.pop("torch_dtype", None)
        dtypes = {written[name] for name, parts in keys.parts.items() if parts}
        if len(dtypes) == 1:
            content["torch_dtype"] = dtypes.pop()
        write_json(partial / "config.json", content)
        _copy_tokenizer(source, partial)
    return _report(keys, written, total, template)


@functools.cache
def _key_map(config: SegEarthR2Config) -> KeyMap:
    return KeyMap(segearth_r2_rules(config), module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))))


def _cast(name: str, array: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all() and np.isfinite(array).all():
        raise UserError(f"key {name}: its largest value {np.abs(array).max():.3g} does not fit into {np.dtype(dtype).name}")
    return cast


def _report(keys: KeyMap, present: Container[str], total: Counter[str], template: str) -> Report:
    unused = [name for name, parts in keys.parts.items() if not parts]
    kept = [name for name in unused if name in present]
    return Report(
        mapped=len(keys.parts) - len(unused),
        parameters=len(keys.leaves),
        kept=len(kept),
        partly=_summary((name for name, parts in keys.parts.items() if any(part.path is None for part in parts)), keys.parts),
        unused=_summary(kept, keys.parts),
        absent=_summary((name for name in unused if name not in present), keys.parts),
        bytes=dict(total),
        template=template,
    )


def _summary(names: Iterable[str], everything: Iterable[str]) -> tuple[str, ...]:
    """A few lines that say which of `everything` the `names` are: whole subtrees as "prefix.*", layer numbers as "*", with counts."""
    names = list(names)
    others = set(everything) - set(names)
    subtrees: Counter[str] = Counter()
    for name in names:
        steps = name.split(".")
        prefixes = [".".join(steps[:depth]) for depth in range(1, len(steps))]
        whole = next((prefix for prefix in prefixes if not any(other.startswith(f"{prefix}.") for other in others)), None)
        subtrees[name if whole is None else f"{whole}.*"] += 1
    alike: dict[str, list[str]] = {}
    for subtree in subtrees:
        alike.setdefault(re.sub(r"\.\d+(?=\.)", ".*", subtree), []).append(subtree)
    return tuple(f"{line if len(those) > 1 else those[0]} ({sum(map(subtrees.get, those))})" for line, those in alike.items())


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _check_target(target: Path, source: Path, force: bool) -> None:
    if source.resolve() == target.resolve() or target.resolve() in source.resolve().parents:
        raise UserError(f"{target}: is or holds the source; expected another place")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise UserError(f"{target}: exists; choose another target or pass --force to replace it")
    if not (target / "config.json").is_file():
        raise UserError(f"{target}: exists and is no checkpoint folder; it is not replaced")


@contextlib.contextmanager
def _built_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when it is whole, and vanishes if it never is."""
    target = target.absolute()
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            replaced = target.with_name(f".{target.name}.replaced-{os.getpid()}")
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
