"""The embedding of [SEG] in a checkpoint whose tokenizer does not have the token yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from segearth_r2_jax.checkpoints.sources import initializers
from segearth_r2_jax.checkpoints.sources.derived_tensor import stacked_rows
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import EMBEDDING, HEAD, Origin, ReferenceCheckpoint
from segearth_r2_jax.checkpoints.sources.tokenizer_files import tokens_with_seg
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.errors import UserError


def grown(table: LazyTensor, origin: Origin, rows: int, std: float, seed: int) -> tuple[LazyTensor, Origin]:
    """`table` [fewer rows, width] with new rows, as transformers' `resize_token_embeddings` draws them: normal with `std`."""
    new = initializers.normal(f"{EMBEDDING} new rows", (rows - table.shape[0], table.shape[1]), seed, std, table.dtype)
    transform = f"{origin.transform}, {new.shape[0]} rows added: initialised: normal {std:g}, seed {seed}"
    return stacked_rows(table, new), Origin(origin.file, origin.key, transform)


def embedding_std(config: Mapping[str, Any]) -> float:
    """The standard deviation of new embeddings, by the reference's config.json.

    Raises:
        UserError: it is none.
    """
    std = config.get("initializer_range", 0.02)
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 <= std <= 100:
        raise UserError(f"config.json: initializer_range is {std!r:.80}; expected a number from 0 to 100")
    return float(std)


def with_seg_token(checkpoint: ReferenceCheckpoint, *, seed: int = 0) -> ReferenceCheckpoint:
    """`checkpoint` with a row for [SEG] in its table of embeddings; the same if its tokenizer or its table has one, or if it has neither.

    A table padded beyond the tokens (51200 rows) has a row for [SEG] already and stays as it is.

    Raises:
        UserError: the tokenizer cannot be read, or the language model head has no row for [SEG].
    """
    if checkpoint.tokenizer is None or EMBEDDING not in checkpoint.tensors:
        return checkpoint
    tokens, known = tokens_with_seg(checkpoint.tokenizer)
    if known:
        return checkpoint
    head, table = checkpoint.tensors.get(HEAD), checkpoint.tensors[EMBEDDING]
    if head is not None and head.shape and head.shape[0] < tokens:
        raise UserError(f"{checkpoint.tokenizer}: the tokenizer has no [SEG], and {HEAD} with {head.shape[0]} rows has none for it")
    if len(table.shape) != 2 or table.shape[0] >= tokens:
        return checkpoint
    tensor, origin = grown(table, checkpoint.origins[EMBEDDING], tokens, embedding_std(checkpoint.config), seed)
    return dataclasses.replace(
        checkpoint,
        tensors={**checkpoint.tensors, EMBEDDING: tensor},
        origins={**checkpoint.origins, EMBEDDING: origin},
        config={**checkpoint.config, "vocab_size": tokens},
    )
