"""The point from which the reference starts to train: Mipha-3B, the mask branch of Mask2Former, and what no file has, initialised.

What no file has, each as its module in PyTorch begins (the reference builds these modules after loading Mipha, so that no other rule
touches them): `SEG_token_projector` and `predictor.SEG_proj` are `nn.Linear`, `predictor.SEG_query_embed` (one row more than there are
queries) and `new_query_embed` (one row) are `nn.Embedding`; the biases of `adapter_1.0` and `layer_1.0` are zero.
"""

from __future__ import annotations

from pathlib import Path

from segearth_r2_jax.checkpoints.sources import initializers
from segearth_r2_jax.checkpoints.sources.derived_tensor import first_rows
from segearth_r2_jax.checkpoints.sources.mask2former import read_mask2former
from segearth_r2_jax.checkpoints.sources.mipha import merged_config, read_mipha
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import EMBEDDING, HEAD, Collection, Origin, ReferenceCheckpoint, missing_parts
from segearth_r2_jax.checkpoints.sources.seg_token import embedding_std, grown
from segearth_r2_jax.checkpoints.sources.siglip import read_siglip
from segearth_r2_jax.checkpoints.sources.tokenizer_files import has_tokenizer, tokens_with_seg
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.errors import UserError

# The prompt that the reference trains with.
TRAINING_TEMPLATE = "train_phi_v0"

_TOWER = "model.vision_tower."


def assemble(mipha: Path, mask2former: Path, *, siglip: Path | None = None, seed: int = 0) -> ReferenceCheckpoint:
    """The reference's starting point.

    mipha: the folder of Mipha-3B, with its config.json and tokenizer. mask2former: detectron2's file. siglip: whose vision tower takes
    the place of Mipha's (the reference keeps Mipha's, which was trained further). seed: of what no file has.

    Raises:
        UserError: a source cannot be read, is of another kind, or lacks something.
    """
    mipha, mask2former = Path(mipha), Path(mask2former)
    language, config = read_mipha(mipha)
    if siglip is not None:
        _replace_tower(language, read_siglip(Path(siglip)), str(siglip))
    whole = Collection()
    whole.update(language)
    whole.update(read_mask2former(mask2former))
    folder = mipha if mipha.is_dir() else mipha.parent
    for part in (EMBEDDING, HEAD):
        if len(_tensor(whole, part, mipha).shape) != 2:
            raise UserError(f"{mipha}: {part} has shape {list(whole.tensors[part].shape)}; expected [tokens, width]")
    if not has_tokenizer(folder):
        raise UserError(f"{folder}: no tokenizer.json, and no vocab.json with merges.txt; the tokenizer tells which token [SEG] is")
    _resize(whole, folder, seed, embedding_std(config))
    _initialize(whole, mipha, mask2former, seed)
    if missing := missing_parts(whole.tensors):
        raise UserError(f"{mipha}: has no {', no '.join(missing)}; a Mipha checkpoint has it")
    return ReferenceCheckpoint(
        kind="starting point of the reference, assembled",
        folder=folder,
        tensors=whole.tensors,
        origins=whole.origins,
        dropped=tuple(whole.dropped),
        config=merged_config(config, whole.tensors[EMBEDDING].shape[0]),
        tokenizer=folder,
        template=TRAINING_TEMPLATE,
    )


def _replace_tower(language: Collection, siglip: Collection, path: str) -> None:
    for name in [name for name in language.tensors if name.startswith(_TOWER)]:
        origin = language.origins.pop(name)
        if name in siglip.tensors and siglip.tensors[name].shape != language.tensors[name].shape:
            shapes = list(siglip.tensors[name].shape), list(language.tensors[name].shape)
            raise UserError(f"{path}: {siglip.origins[name].key} has shape {shapes[0]}, but {origin.file} has {shapes[1]}")
        del language.tensors[name]
        language.drop(origin.file, origin.key, f"the tower of {path} takes its place")
    language.update(siglip)


def _tensor(whole: Collection, name: str, path: Path) -> LazyTensor:
    if name not in whole.tensors:
        raise UserError(f"{path}: no key {name}; expected a whole checkpoint")
    return whole.tensors[name]


def _resize(whole: Collection, folder: Path, seed: int, std: float) -> None:
    """As many rows of the table of embeddings as there are tokens, with [SEG] among them, as the reference makes it."""
    tokens, _ = tokens_with_seg(folder)
    table, origin = whole.tensors[EMBEDDING], whole.origins[EMBEDDING]
    if tokens > whole.tensors[HEAD].shape[0]:
        raise UserError(
            f"{folder}: the tokenizer has {tokens} tokens with [SEG], but {HEAD} has {whole.tensors[HEAD].shape[0]} rows, "
            "and the reference gives it no more: the network could not say [SEG]"
        )
    if tokens < table.shape[0]:
        whole.tensors[EMBEDDING] = first_rows(table, tokens)
        whole.origins[EMBEDDING] = Origin(origin.file, origin.key, f"first {tokens} of {table.shape[0]} rows")
    elif tokens > table.shape[0]:
        whole.tensors[EMBEDDING], whole.origins[EMBEDDING] = grown(table, origin, tokens, std, seed)


def _initialize(whole: Collection, mipha: Path, mask2former: Path, seed: int) -> None:
    width = _tensor(whole, EMBEDDING, mipha).shape[1]
    queries, channels = _tensor(whole, "predictor.query_feat.weight", mask2former).shape

    def add(tensors: dict[str, LazyTensor], how: str) -> None:
        for name, tensor in tensors.items():
            whole.add(name, tensor, Origin("", "", how))

    def from_linear(inputs: int) -> str:
        return f"initialised: uniform within 1/sqrt({inputs}), seed {seed}"

    add(initializers.linear("SEG_token_projector", channels, width, seed), from_linear(width))
    for i in range(2):
        add(initializers.linear(f"predictor.SEG_proj.layers.{i}", channels, channels, seed), from_linear(channels))
    for name, rows in {"predictor.SEG_query_embed.weight": queries + 1, "predictor.new_query_embed.weight": 1}.items():
        add({name: initializers.normal(name, (rows, channels), seed, 1.0)}, f"initialised: normal 1, seed {seed}")
    for block in ("adapter_1", "layer_1"):
        name, weight = f"pixel_decoder.{block}.0.bias", f"pixel_decoder.{block}.0.weight"
        add({name: initializers.zeros(name, whole.tensors[weight].shape[:1])}, "initialised: zeros")
