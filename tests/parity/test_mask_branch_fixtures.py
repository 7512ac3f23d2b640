"""Swin, deformable sampling, pixel decoder and mask decoder give the numbers of the reference, in float32 and in float64.

Each stage starts from the stored output of the stage before it, so an error is found where it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from language_reference import TOLERANCE, Arrays
from reference import fixture_model, fixture_parameters, merge

from segearth_r2_jax.kernels.deformable_sampling import deformable_sampling
from segearth_r2_jax.kernels.masked_attention import blocked_pixels
from segearth_r2_jax.models.mask_decoder import MaskDecoder, mask_features_at
from segearth_r2_jax.models.pixel_decoder import PixelDecoder, reference_points
from segearth_r2_jax.models.segearth_r2 import SegEarthR2
from segearth_r2_jax.models.swin import Swin

# The stored encoder tokens and reference points are every seventh.
EVERY = 7


@pytest.fixture(scope="module")
def model(fixtures_dir: Path) -> SegEarthR2:
    return fixture_model(fixtures_dir)


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="module")
def parameters(fixtures_dir: Path) -> dict:
    return fixture_parameters(fixtures_dir, "float32")


@pytest.fixture
def swin(model: SegEarthR2, parameters: dict) -> Swin:
    return merge(model.swin, parameters["swin"])


@pytest.fixture
def pixel_decoder(model: SegEarthR2, parameters: dict) -> PixelDecoder:
    return merge(model.pixel_decoder, parameters["pixel_decoder"])


@pytest.fixture
def mask_decoder(model: SegEarthR2, parameters: dict) -> MaskDecoder:
    return merge(model.mask_decoder, parameters["mask_decoder"])


def _channels_last(maps: np.ndarray) -> jax.Array:
    return jnp.asarray(maps.transpose(0, 2, 3, 1))


def _channels_first(maps: jax.Array) -> jax.Array:
    return maps.transpose(0, 3, 1, 2)


def test_swin(swin: Swin, fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "swin.npz", precision)
    embedded, outputs = jax.jit(lambda m, x: (m.patch_embed(x), m(x)))(swin, _channels_last(stored["image"]))
    stored.check("patch_embed", _channels_first(embedded))
    assert len(outputs) == 4
    for i, feature_map in enumerate(outputs):
        stored.check(f"res{i + 2}", _channels_first(feature_map))


def test_deformable_sampling(fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "deform_core.npz", precision)
    shapes = tuple((int(h), int(w)) for h, w in stored["shapes"])
    locations = stored["locations"]
    assert (locations < 0).any(), "the fixture is meant to have points outside the map"
    assert (locations > 1).any(), "the fixture is meant to have points outside the map"
    values, locations, weights = (jnp.asarray(a) for a in (stored["value"], locations, stored["weights"]))
    stored.check("out", deformable_sampling(values, shapes, locations, weights))


def test_pixel_decoder(pixel_decoder: PixelDecoder, fixtures_dir: Path, precision: str):
    stored, inputs = (Arrays(fixtures_dir / name, precision) for name in ("pixel_decoder.npz", "swin.npz"))
    features = tuple(_channels_last(inputs[f"res{i}"]) for i in range(2, 6))

    shapes = tuple((int(h), int(w)) for h, w in stored["spatial_shapes"])
    level_start = np.cumsum([0] + [h * w for h, w in shapes[:-1]])
    np.testing.assert_array_equal(level_start, stored["level_start"])

    @jax.jit
    def forward(decoder: PixelDecoder, features: tuple[jax.Array, ...]):
        encoder = decoder.encoder_input(features)
        assert encoder.shapes == shapes
        definition, state = nnx.split(decoder.layers)
        _, after_layers = jax.lax.scan(
            lambda x, layer: (nnx.merge(definition, layer)(x, encoder.position, shapes),) * 2, encoder.tokens, state
        )
        return encoder.tokens, encoder.position, after_layers, decoder(features)

    tokens, position, after_layers, output = forward(pixel_decoder, features)
    stored.check("encoder_input", tokens)
    stored.check("pos_plus_level", position[None])
    # The reference repeats each point for every level.
    points = reference_points(shapes, precision)[::EVERY]
    stored.check("reference_points", jnp.broadcast_to(points[None, :, None], stored["reference_points"].shape))
    for i in range(pixel_decoder.config.num_layers):
        stored.check(f"encoder_layer_{i}_every7", after_layers[i][:, ::EVERY])
    stored.check("mask_features", _channels_first(output.mask_features))
    for i, feature_map in enumerate(output.multi_scale):
        stored.check(f"ms{i}", _channels_first(feature_map))


def _mask_decoder_inputs(fixtures_dir: Path, precision: str) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """Multi-scale maps and mask features of the image, and the queries [masks, 1, c]."""
    maps, queries = (Arrays(fixtures_dir / name, precision) for name in ("pixel_decoder.npz", "mask_decoder.npz"))
    multi_scale = tuple(_channels_last(maps[f"ms{i}"]) for i in range(3))
    return multi_scale, _channels_last(maps["mask_features"]), jnp.asarray(queries["seg_embedding"])


def _repeat(multi_scale: tuple[jax.Array, ...], n: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.repeat(feature_map, n, axis=0) for feature_map in multi_scale)


# Every mask as a batch row with one query, the form of the reference.
_decode = jax.jit(lambda decoder, *inputs: decoder(*inputs))


@jax.jit
def _decode_layer_by_layer(decoder: MaskDecoder, multi_scale: tuple[jax.Array, ...], mask_features: jax.Array, x: jax.Array):
    """With all queries on one image: the query after every layer, and the mask logits of every prediction at the level that it masks."""
    features = [mask_features_at(feature_map.shape[1:3], mask_features) for feature_map in multi_scale]
    queries, level_logits = [], []

    def look(i: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        embedding = decoder.mask_embedding(x)
        level_logits.append(jnp.einsum("bqc,bsc->bqs", embedding, features[i % 3]))
        return embedding, features[i % 3]

    for i, layer in enumerate(decoder.layers):
        keys, values = layer.cross_attention.keys_values(*decoder.memory(i % 3, multi_scale[i % 3]))
        x = layer(x, keys, values, *look(i, x))
        queries.append(x)
    look(len(queries), x)
    return queries, level_logits


def test_mask_decoder(mask_decoder: MaskDecoder, fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "mask_decoder.npz", precision)
    multi_scale, mask_features, queries = _mask_decoder_inputs(fixtures_dir, precision)
    n = len(queries)
    predictions = _decode(mask_decoder, _repeat(multi_scale, n), jnp.repeat(mask_features, n, axis=0), queries)
    layers = mask_decoder.config.num_layers
    assert len(predictions) == layers + 1
    for i in range(layers + 1):
        stored.check(f"pred_masks_{i}", predictions[i])


def test_mask_decoder_layer_by_layer(mask_decoder: MaskDecoder, fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "mask_decoder.npz", precision)
    multi_scale, mask_features, queries = _mask_decoder_inputs(fixtures_dir, precision)
    queries, level_logits = _decode_layer_by_layer(mask_decoder, multi_scale, mask_features, queries.transpose(1, 0, 2))
    for i, query in enumerate(queries):
        stored.check(f"query_{i}", query)
    for i, logits in enumerate(level_logits):
        np.testing.assert_array_equal(blocked_pixels(logits)[0], stored[f"attn_blocked_{i}"])
    # How near a logit comes to zero is as exact as the logits are, so the tolerance is relative to those.
    for logits, nearest in zip(level_logits[:-1], stored["min_abs_resized_logit"], strict=True):
        magnitude = np.abs(logits)
        assert abs(magnitude.min() - nearest) <= TOLERANCE[precision] * magnitude.max()


def test_mask_decoder_where_every_pixel_is_blocked(mask_decoder: MaskDecoder, fixtures_dir: Path, precision: str):
    """Each query has mask features of its own, made so that its first mask is negative everywhere; it must then see everything."""
    stored = Arrays(fixtures_dir / "mask_decoder.npz", precision)
    multi_scale, mask_features, queries = _mask_decoder_inputs(fixtures_dir, precision)
    _, h, w, _ = mask_features.shape
    vectors = jnp.asarray(stored["allneg_mask_features_vector"])
    n = len(vectors)
    constant_features = jnp.broadcast_to(vectors[:, None, None], (n, h, w, vectors.shape[-1]))
    predictions = _decode(mask_decoder, _repeat(multi_scale, n), constant_features, queries)
    assert (predictions[0] < 0).all()
    for name, i in (("allneg_pred_masks_1", 1), ("allneg_query_final_mask", -1)):
        np.testing.assert_allclose(predictions[i], jnp.broadcast_to(predictions[i][..., :1, :1], predictions[i].shape), rtol=1e-5)
        stored.check(name, predictions[i][..., 0, 0])
