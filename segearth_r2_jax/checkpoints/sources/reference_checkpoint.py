"""A whole network in the reference's names, unread, and where every tensor of it comes from: what every source is turned into."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.layers import LoraConfig

AS_STORED = "as stored"
RENAMED = "renamed"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: `key` of `file` (both "" if no file has it), and what was done to it on the way, in words."""

    file: str
    key: str
    transform: str


@dataclasses.dataclass(frozen=True)
class ReferenceCheckpoint:
    """The tensors of a network under the names of a merged SegEarth-R2 checkpoint, unread.

    kind: what was found, in words.
    folder: where the configuration and the tokenizer are.
    tensors: by name; adapters are `model.layers.{i}.self_attn.{q,v}_proj.lora_A.weight` [r, in] and `.lora_B.weight` [out, r].
    origins: of each of `tensors`; dropped: the stored tensors that are not among them, and why.
    config: the reference's config.json; lora: of the adapters, None if there are none.
    tokenizer: the folder of the tokenizer's files, None if there are none.
    template: the prompt that the weights were trained with, None if the source does not say.
    """

    kind: str
    folder: Path
    tensors: dict[str, LazyTensor]
    origins: dict[str, Origin]
    dropped: tuple[Origin, ...]
    config: dict[str, Any]
    lora: LoraConfig | None = None
    tokenizer: Path | None = None
    template: str | None = None


@dataclasses.dataclass
class Collection:
    """Tensors on their way into a state dict."""

    tensors: dict[str, LazyTensor] = dataclasses.field(default_factory=dict)
    origins: dict[str, Origin] = dataclasses.field(default_factory=dict)
    dropped: list[Origin] = dataclasses.field(default_factory=list)

    def add(self, name: str, tensor: LazyTensor, origin: Origin) -> None:
        """Raises UserError if `name` is there already."""
        if name in self.tensors:
            raise UserError(f"{origin.file}: duplicate key {name}: {origin.key} is {self.origins[name].key} of {self.origins[name].file}")
        self.tensors[name] = tensor.renamed(name)
        self.origins[name] = origin

    def drop(self, file: str | Path, key: str, why: str) -> None:
        """Note that a stored tensor is not taken."""
        self.dropped.append(Origin(str(file), key, f"dropped: {why}"))

    def add_all(self, tensors: Mapping[str, LazyTensor], file: str | Path, rename: Callable[[str], str] = str) -> None:
        """All of `tensors` under what `rename` makes of their names."""
        for key, tensor in tensors.items():
            name = rename(key)
            self.add(name, tensor, Origin(str(file), key, AS_STORED if name == key else RENAMED))

    def update(self, other: Collection) -> None:
        """Everything of another collection as well."""
        for name, tensor in other.tensors.items():
            self.add(name, tensor, other.origins[name])
        self.dropped += other.dropped

    def put_over(self, base: ReferenceCheckpoint) -> Collection:
        """These tensors, and those of `base` whose names they do not take.

        Raises:
            UserError: a tensor differs in shape from the one whose place it takes (the table of token embeddings may: it has grown or
                shrunk with the tokenizer).
        """
        whole = Collection(dict(base.tensors), dict(base.origins), [*base.dropped, *self.dropped])
        for name, tensor in self.tensors.items():
            origin, below = self.origins[name], base.tensors.get(name)
            if below is not None and below.shape != tensor.shape and not (name == EMBEDDING and below.shape[1:] == tensor.shape[1:]):
                raise UserError(
                    f"{origin.file}: key {origin.key} has shape {list(tensor.shape)}, but {name} of the base has {list(below.shape)}; "
                    "expected the base that the run started from"
                )
            if below is not None:
                whole.drop(base.origins[name].file, base.origins[name].key, f"taken from {origin.file}")
            whole.tensors[name], whole.origins[name] = tensor.renamed(name), origin
        return whole


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# The parts of a network, by the beginning of their names.
LANGUAGE_PARTS = {
    EMBEDDING: "token embeddings",
    "model.layers.": "language model",
    "model.final_layernorm.": "last norm of the language model",
    HEAD: "language model head",
    "model.mm_projector.": "image projector",
    "model.vision_tower.": "SigLIP tower",
}
MASK_PARTS = {
    "model.vision_tower_mask.": "Swin tower",
    "pixel_decoder.": "pixel decoder",
    "predictor.": "mask decoder",
    "SEG_token_projector.": "[SEG] projector",
}


def missing_parts(names: Iterable[str]) -> list[str]:
    """The parts of a network, in words, of which no tensor is among `names`."""
    names = list(names)
    return [part for prefix, part in (LANGUAGE_PARTS | MASK_PARTS).items() if not any(name.startswith(prefix) for name in names)]
