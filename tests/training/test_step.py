import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_run import micro_model, micro_run
from random_weights import random_params

from segearth_r2_jax.models.binding import abstract_module, bind, flatten, logical_axes, module_params
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config
from segearth_r2_jax.models.siglip import SiglipConfig
from segearth_r2_jax.objectives.mask_losses import draw_points
from segearth_r2_jax.objectives.total import LossWeights, total_loss
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.training.schedules import OptimizerConfig, make_optimizer
from segearth_r2_jax.training.state import TrainState, initial_state, split_params, state_shardings
from segearth_r2_jax.training.step import StepConfig, _accumulated, compile_train_step, forward, train_step

TOKENS, MASKS = 96, 3


def random_batch(seed: int, config, rows: int = 2, tokens: int = TOKENS) -> dict[str, np.ndarray]:
    """A batch as the loader yields it, with rows of random lengths and random numbers of masks."""
    rng = np.random.default_rng(seed)
    image = config.siglip.num_tokens
    token_ids = np.full((rows, tokens), -1, np.int32)
    lengths = rng.integers(image + 20, tokens, rows)
    for row, length in enumerate(lengths):
        token_ids[row, :length] = rng.integers(0, config.phi.vocab_size, length)
    token_ids[:, 5 : 5 + image] = -200
    labels = np.where((np.arange(tokens) > image + 10) & (token_ids >= 0), token_ids, -100)
    count = rng.integers(0, MASKS + 1, rows)
    valid = np.arange(MASKS) < count[:, None]
    size = config.image_size
    boxes = rng.random((rows, MASKS, size, size)) < 0.3
    return {
        "image": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        "image_siglip": rng.integers(0, 256, (rows, config.siglip.image_size, config.siglip.image_size, 3), dtype=np.uint8),
        "token_ids": token_ids,
        "labels": labels.astype(np.int32),
        "attention_mask": np.arange(tokens) < lengths[:, None],
        "image_start": np.full(rows, 5, np.int32),
        "seg_positions": np.where(valid, image + 12 + np.arange(MASKS), 0).astype(np.int32),
        "mask_valid": valid,
        "masks": (boxes & valid[..., None, None]).astype(np.uint8),
        "mask_size": np.full((rows, 2), size, np.int32),
        "mask_frame": np.full((rows, 2), size, np.int32),
        "record_index": np.arange(rows),
    }


@dataclasses.dataclass
class Prepared:
    """A compiled step, a function that makes its first state, and the model's configuration."""

    step: object
    state: TrainState
    config: object


def prepare(model, step_config: StepConfig, trainable: tuple[str, ...], learning_rate: float = 1e-3) -> Prepared:
    def make(rngs):
        return SegEarthR2(model, rngs=rngs)

    abstract, mesh = abstract_module(make), make_mesh(MeshShape())
    optimizer = make_optimizer(OptimizerConfig(learning_rate=learning_rate), 100)
    state = initial_state(*split_params(random_params(make), trainable), optimizer)
    sharded = state_shardings(jax.eval_shape(lambda: state), optimizer, logical_axes(abstract), mesh)
    return Prepared(compile_train_step(abstract, optimizer, step_config, mesh, sharded), jax.device_put(state, sharded), model)


LORA_TRAINABLE = ("lora_", "^phi/lm_head", "^pixel_decoder", "^mask_decoder", "^seg_projector")


@pytest.fixture(scope="module")
def lora_run() -> Prepared:
    return prepare(micro_model(lora=LoraConfig(rank=2)), dataclasses.replace(micro_run("").step, regularize=True), LORA_TRAINABLE)


def test_the_tiny_preset_compiles_once_over_batches_of_mixed_lengths_and_mask_counts():
    config = SegEarthR2Config.tiny(vocab_size=1024)
    run = prepare(config, micro_run("").step, ("",))
    abstract = abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))

    @jax.jit
    def evaluate(params, batch):
        return forward(bind(abstract, params), batch, dtype="float32", supervise_attention=False, rng=None).mask_logits

    state, counts, lengths = run.state, set(), set()
    for seed in range(50):
        batch = random_batch(seed, config)
        counts.add(int(batch["mask_valid"].sum()))
        lengths |= set(batch["attention_mask"].sum(1).tolist())
        state, report = run.step(state, batch)
        assert all(np.isfinite(float(value)) for value in report.metrics.values()), (seed, report.metrics)
        evaluate(state.trainable, batch)
    assert counts == {0, 1, 2, 3, 4, 5, 6}
    assert len(lengths) > 20
    assert run.step._cache_size() == 1
    assert evaluate._cache_size() == 1
    assert int(state.step) == 50


def test_only_the_trainable_parameters_change(lora_run):
    before = {path: np.array(leaf) for path, leaf in flatten(lora_run.state.trainable).items()}
    frozen = {path: np.array(leaf) for path, leaf in flatten(lora_run.state.frozen).items()}
    state = jax.tree.map(jnp.copy, lora_run.state)
    for seed in (1, 2, 3):
        state, _ = lora_run.step(state, random_batch(seed, lora_run.config))
    for path, leaf in flatten(state.frozen).items():
        np.testing.assert_array_equal(leaf, frozen[path], err_msg=path)
    still = [path for path, leaf in flatten(state.trainable).items() if np.array_equal(leaf, before[path])]
    assert still == []
    assert {path.split("/")[0] for path in before} == {"phi", "pixel_decoder", "mask_decoder", "seg_projector"}


def test_the_same_step_gives_the_same_numbers_and_the_next_one_other_points(lora_run):
    batch = random_batch(7, lora_run.config)
    first = lora_run.step(jax.tree.map(jnp.copy, lora_run.state), batch)[1].metrics
    again = lora_run.step(jax.tree.map(jnp.copy, lora_run.state), batch)[1].metrics
    assert {k: float(v) for k, v in first.items()} == {k: float(v) for k, v in again.items()}
    later = jax.tree.map(jnp.copy, lora_run.state)
    later = dataclasses.replace(later, step=later.step + 5)
    assert float(lora_run.step(later, batch)[1].metrics["loss_bce"]) != float(first["loss_bce"])


def test_padding_slots_change_nothing(lora_run):
    """The same rows with one more padded token and different content in the unused mask slots."""
    batch = random_batch(3, lora_run.config)
    assert not batch["mask_valid"].all()
    other = dict(batch, masks=np.where(batch["mask_valid"][..., None, None], batch["masks"], 1).astype(np.uint8))
    one, two = (lora_run.step(jax.tree.map(jnp.copy, lora_run.state), b)[1].metrics for b in (batch, other))
    assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}


def test_bfloat16_follows_float32():
    model = micro_model()
    abstract = abstract_module(lambda rngs: SegEarthR2(model, rngs=rngs))
    params, batch = random_params(lambda rngs: SegEarthR2(model, rngs=rngs)), random_batch(2, model)
    sampling = micro_run("").step.points

    def losses(params, dtype):
        bound = bind(abstract, params)
        output = forward(bound, batch, dtype=dtype, supervise_attention=True, rng=None)
        assert output.mask_logits.dtype == dtype
        draws = draw_points(jax.random.key(0), output.mask_logits.shape[0], batch["mask_valid"].size, sampling)
        return total_loss(output, batch, draws, LossWeights(), sampling, logits_of=bound.phi.logits)[1]

    exact, rounded = (jax.jit(losses, static_argnums=1)(params, dtype) for dtype in ("float32", "bfloat16"))
    for name, value in exact.items():
        assert rounded[name].dtype == jnp.float32
        assert float(rounded[name]) == pytest.approx(float(value), rel=0.05), name


def test_without_supervision_no_attention_rows_are_computed():
    model = micro_model()
    abstract = abstract_module(lambda rngs: SegEarthR2(model, rngs=rngs))
    batch = random_batch(0, model)
    for supervise in (True, False):
        output = jax.eval_shape(lambda m, b: forward(m, b, dtype="float32", supervise_attention=supervise, rng=None), abstract, batch)  # noqa: B023
        assert (output.attention_rows is not None) == supervise


@pytest.mark.slow
def test_supervision_costs_almost_no_memory_at_1024_tokens():
    """Peak temporary memory of the compiled training step, from the compiler's own analysis, with and without the supervision."""
    siglip = SiglipConfig(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, patch_size=4, image_size=108)
    model = dataclasses.replace(micro_model(remat="full"), siglip=siglip)
    assert siglip.num_tokens == 729
    abstract = abstract_module(lambda rngs: SegEarthR2(model, rngs=rngs))
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = jax.eval_shape(lambda params: initial_state(params, {}, optimizer), module_params(abstract))
    batch = random_batch(0, model, tokens=1024)
    peak = {}
    for weight in (0.0, 0.01):
        config = StepConfig(weights=LossWeights(attention=weight), points=micro_run("").step.points)
        compiled = jax.jit(train_step(abstract, optimizer, config), donate_argnums=0).lower(state, batch).compile()
        peak[weight] = compiled.memory_analysis().temp_size_in_bytes
    assert peak[0.0] > 2**20
    assert peak[0.01] < 1.05 * peak[0.0]


def test_an_accumulated_step_is_the_step_of_the_whole_batch():
    """Two parts with the same rows, and losses without random points: the same numbers and the same update."""
    weights = LossWeights(bce=0.0, dice=0.0, attention=0.01)
    batch = {key: np.repeat(value, 2, axis=0) for key, value in random_batch(5, micro_model()).items()}
    results = []
    for config in (StepConfig(weights=weights), StepConfig(weights=weights, accumulate=2), StepConfig(weights=weights, logits_chunk=32)):
        run = prepare(micro_model(), config, ("^phi",))
        state, report = run.step(run.state, batch)
        results.append((flatten(state.trainable), {key: float(value) for key, value in report.metrics.items()}))
    (whole, numbers), *others = results
    assert numbers["loss"] > 1
    for params, others_numbers in others:
        assert others_numbers == pytest.approx(numbers, rel=1e-5)
        for path, leaf in params.items():
            np.testing.assert_allclose(leaf, whole[path], rtol=1e-4, atol=2e-6, err_msg=path)


def test_accumulation_takes_the_mean_over_the_parts():
    batch = {"x": jnp.arange(12.0).reshape(6, 2)}

    def gradients(part, rng):
        return {"w": part["x"].sum(0)}, {"loss": part["x"][0, 0] + jax.random.uniform(rng)}, part["x"]

    key = jax.random.key(3)
    grads, losses, masks = _accumulated(gradients, batch, key, 3)
    np.testing.assert_array_equal(grads["w"], np.arange(12.0).reshape(6, 2).sum(0) / 3)
    np.testing.assert_array_equal(masks, [[0, 1], [6, 7]])  # Rows 0 and 3: each part takes every third row.
    noise = np.mean([jax.random.uniform(k) for k in jax.random.split(key, 3)])
    assert float(losses["loss"]) == pytest.approx((0 + 2 + 4) / 3 + noise, rel=1e-6)
