"""Attention on TPUs: JAX's splash kernels, which keep the scores of a block of queries and keys in vector memory and leave out the blocks
that a causal query never sees.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from segearth_r2_jax.kernels.attention.keyless_rows import mean_for_keyless_rows

# Blocks have this many rows, or little more; a shorter sequence is one block.
BLOCK = 512
_LANES = 128


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None = None,
    *,
    causal: bool,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """`reference.attend` of bfloat16 or float32.

    The kernels know no scale: the queries are scaled in float32 and rounded to their dtype once more, which moves a score by no more than
    the rounding of q itself did (and by nothing where the scale is a power of two).
    """
    # Half a second, which a process on another platform should not wait for.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    t, s, n = q.shape[1], k.shape[1], q.shape[2]
    rows, row_block = padded(t)
    columns, column_block = padded(s)
    mask = splash.CausalMask((rows, columns)) if causal else splash.FullMask((rows, columns))
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * n),
        block_sizes=splash.BlockSizes(
            block_q=row_block,
            block_kv=column_block,
            block_q_dkv=row_block,
            block_kv_dkv=column_block,
            # All gradients from one kernel: two of seven products less than with a kernel of its own for the queries'.
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    arrays = _heads_first(scaled, rows), _heads_first(k, columns), _heads_first(v, columns)
    # What was added after the last key lies in every causal query's future.
    if key_mask is None and (causal or s == columns):
        out = jax.vmap(kernel)(*arrays)
    else:
        visible = jnp.ones(k.shape[:2], bool) if key_mask is None else key_mask
        ids = splash.SegmentIds(q=jnp.ones(rows, jnp.int32), kv=jnp.pad(visible, ((0, 0), (0, columns - s))).astype(jnp.int32))
        out = jax.vmap(kernel, in_axes=(0, 0, 0, splash.SegmentIds(q=None, kv=0)))(*arrays, ids)
    return mean_for_keyless_rows(out.swapaxes(1, 2)[:, :t], v, key_mask, causal=causal)


def padded(length: int) -> tuple[int, int]:
    """The length filled up to whole blocks, and that of a block."""
    blocks = max(1, length // BLOCK)
    block = -(-length // (blocks * _LANES)) * _LANES
    return blocks * block, block


def _heads_first(x: jax.Array, length: int) -> jax.Array:
    """[b, t, n, h] -> [b, n, length, h], filled up with zeros"""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))
