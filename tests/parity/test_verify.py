"""`verify` and its other side: PyTorch from a file's tensors gives the reference's own numbers, and a wrong bit does not pass."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import fixture_config, fixture_parameters, reference_weights

from segearth_r2_jax.checkpoints import manager, verify_torch
from segearth_r2_jax.checkpoints.export import Export
from segearth_r2_jax.checkpoints.lora import merge_lora
from segearth_r2_jax.checkpoints.reference_config import config_from_reference
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.checkpoints.verify_torch import BOUNDS, verify
from segearth_r2_jax.cli import convert
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import IMAGE_SLOT
from segearth_r2_jax.models.binding import Params, abstract_module, flatten, module_params, unflatten
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

LORA = LoraConfig(rank=3, alpha=7.0)


def tiny(lora: LoraConfig | None = None) -> SegEarthR2Config:
    """Sizes that divide nothing: windows with padding, an image that is no whole number of patches."""
    config = SegEarthR2Config.tiny(vocab_size=40, image_size=72)
    return dataclasses.replace(
        config,
        siglip=dataclasses.replace(config.siglip, image_size=50),
        phi=dataclasses.replace(config.phi, embed_rows=33, lora=lora),
        swin=dataclasses.replace(config.swin, window=5),
    )


def random_leaves(config: SegEarthR2Config) -> dict[str, np.ndarray]:
    """Values everywhere, of the size that keeps the network's states of ordinary size; what verify tells apart must not be 0."""
    rng = np.random.default_rng(0)
    leaves = {}
    for path, leaf in flatten(module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs)))).items():
        values = rng.standard_normal(leaf.shape, np.float32)
        if path.endswith(("kernel", "lora_a", "lora_b")):
            values /= np.prod(leaf.shape[-4:-1] if leaf.ndim == 4 else leaf.shape[-2]) ** 0.5
        elif not path.endswith("table"):
            values = 0.1 * values + path.endswith("scale")
        leaves[path] = values.astype(np.float32)
    return leaves


def write(folder: Path, config: SegEarthR2Config, leaves: dict[str, np.ndarray]) -> Path:
    manager.write_config(folder, {"model": config.to_dict(), "template": "train_phi_v0"})
    manager.save_base(folder, unflatten(leaves))
    return folder


def reference_tensors(config: SegEarthR2Config, params: Params) -> dict[str, np.ndarray]:
    return dict(key_map(config).to_reference(params))


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: the comparison with it is not made")
    threads = torch.get_num_threads()
    # Beside other work on the same cores its threads mostly wait for each other.
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def leaves() -> dict[str, np.ndarray]:
    return random_leaves(tiny())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, leaves) -> Path:
    return write(tmp_path_factory.mktemp("verify") / "checkpoint", tiny(), leaves)


def check_against_fixtures(fixtures_dir: Path, tensors, config: SegEarthR2Config, precision: str) -> None:
    """The stored answer, teacher-forced: its tokens are the likeliest, and its masks come out."""
    from segearth_r2_jax.checkpoints.torch_forward import Weights, forward

    stored = np.load(fixtures_dir / "inference.npz")
    ids = stored["output_ids"][0]
    prompt = stored["prompt_ids"].shape[1]
    slot = int(np.flatnonzero(ids == IMAGE_SLOT)[0])
    before, after = ids[:slot], ids[slot + 1 : -1]  # the last generated token is never an input
    seg = np.flatnonzero(after == stored["seg_token_id"])
    images = [stored[name][0].transpose(1, 2, 0) for name in ("image", "image_clip")]
    outputs = forward(Weights(tensors, precision), config, *images, before, after, seg)
    wide = "__f64" if precision == "float64" else ""
    generated = ids[prompt:]
    np.testing.assert_array_equal(outputs.logits[-len(generated) :].argmax(-1), generated)
    ordered = np.sort(outputs.logits[-len(generated) :], -1)
    # How far the likeliest token is ahead is as exact as the logits are.
    ahead = ordered[:, -1] - ordered[:, -2] - stored[f"greedy_margins{wide}"][: len(generated)]
    assert np.abs(ahead).max() <= 2 * BOUNDS[precision] * np.abs(outputs.logits).max()
    compare(outputs.mask_logits, stored[f"pred_masks_lowres{wide}"][:, 0], BOUNDS[precision])


def compare(actual: np.ndarray, expected: np.ndarray, bound: float = BOUNDS["float32"]) -> None:
    assert np.abs(actual - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("precision", BOUNDS)
def test_the_forward_pass_in_pytorch_gives_the_references_numbers(torch, fixtures_dir, precision):
    check_against_fixtures(fixtures_dir, reference_weights(fixtures_dir), fixture_config(fixtures_dir), precision)


def test_every_stage_gives_the_references_numbers(torch, fixtures_dir):
    from segearth_r2_jax.checkpoints import torch_forward

    config = fixture_config(fixtures_dir)
    w = torch_forward.Weights(reference_weights(fixtures_dir), "float64")

    def wide(file: str, name: str):
        stored = np.load(fixtures_dir / f"{file}.npz")
        return torch.from_numpy(stored[f"{name}__f64" if f"{name}__f64" in stored else name].astype(np.float64))

    with torch.no_grad():
        features = torch_forward.swin(w.under("model.vision_tower_mask"), config, wide("swin", "image"))
        for i, feature_map in enumerate(features):
            compare(feature_map.numpy(), wide("swin", f"res{i + 2}").numpy(), 1e-8)
        mask_features, maps = torch_forward.pixel_decoder(w.under("pixel_decoder"), config, features)
        compare(mask_features.numpy(), wide("pixel_decoder", "mask_features").numpy(), 1e-8)
        for i, feature_map in enumerate(maps):
            compare(feature_map.numpy(), wide("pixel_decoder", f"ms{i}").numpy(), 1e-8)
        queries = wide("mask_decoder", "seg_embedding")[:, 0]
        masks = torch_forward.mask_decoder(w.under("predictor"), config, maps, mask_features, queries)
        for i, mask in enumerate(masks):
            compare(mask.numpy(), wide("mask_decoder", f"pred_masks_{i}")[:, 0].numpy(), 1e-8)
        hidden = torch_forward.language_model(w, config, wide("phi", "inputs_embeds")[:1])
        compare(hidden.numpy(), wide("phi", f"hidden_{config.phi.num_layers}")[:1].numpy(), 1e-8)


def test_the_exported_folder_reloaded_with_torch_gives_the_references_numbers(torch, fixtures_dir, tmp_path):
    from safetensors.torch import load_file

    orbax = write(tmp_path / "orbax", fixture_config(fixtures_dir), flatten(fixture_parameters(fixtures_dir, "float32")))
    folder = tmp_path / "torch"
    Export(orbax).write(folder, max_shard_bytes=2e6)
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    assert (folder / "model.safetensors.index.json").exists()
    config = config_from_reference(json.loads((folder / "config.json").read_text()), {n: tuple(t.shape) for n, t in tensors.items()})
    check_against_fixtures(fixtures_dir, tensors, config, "float64")
    for name, weight in reference_weights(fixtures_dir).items():
        if name in tensors and "self_attention_layers" not in name:
            assert torch.equal(tensors[name], torch.from_numpy(weight)), name


@pytest.mark.slow
def test_the_references_weights_are_verified(torch, fixtures_dir, tmp_path):
    config = fixture_config(fixtures_dir)
    checkpoint = write(tmp_path / "checkpoint", config, flatten(fixture_parameters(fixtures_dir, "float32")))
    report = verify(reference_weights(fixtures_dir), config, checkpoint)
    assert all(comparison.error < 1e-10 for comparison in report.comparisons)


@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_right_conversion_is_verified(torch, checkpoint, leaves, precision):
    report = verify(reference_tensors(tiny(), unflatten(leaves)), tiny(), checkpoint, precision=precision)
    assert [comparison.name for comparison in report.comparisons] == ["logits", "[SEG] states", "mask logits"]
    assert [comparison.count for comparison in report.comparisons] == [20 * 40, 2 * 96, 2 * 18 * 18]
    assert len(report.lines()) == 3
    assert report.lines()[0].startswith(f"verified against PyTorch in {precision}: logits (800 values) differ by at most ")
    assert all(0 < comparison.error < BOUNDS[precision] / 4 for comparison in report.comparisons)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("model.layers.1.mlp.fc2.bias", "logits by .*states by .*mask logits"),
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight", "logits by .*states by .*mask logits"),
        ("lm_head.weight", r"logits by [^,]*$"),
        ("predictor.transformer_ffn_layers.2.linear2.weight", "mask logits by"),
        ("model.vision_tower_mask.layers.3.blocks.0.attn.relative_position_bias_table", "mask logits by"),
        ("SEG_token_projector.bias", "mask logits by"),
    ],
)
def test_a_weight_that_is_a_thousandth_off_is_not(torch, checkpoint, leaves, name, wrong):
    tensors = reference_tensors(tiny(), unflatten(leaves))
    tensors[name] = tensors[name].copy()
    tensors[name].flat[1] *= 1.001
    with pytest.raises(UserError, match=f"{checkpoint}: does not compute what the PyTorch weights compute: {wrong}"):
        verify(tensors, tiny(), checkpoint)


def test_a_transposed_weight_is_not_and_a_missing_one_is_named(torch, checkpoint, leaves):
    tensors = reference_tensors(tiny(), unflatten(leaves))
    name = "model.layers.0.self_attn.dense.weight"
    with pytest.raises(UserError, match="does not compute"):
        verify({**tensors, name: tensors[name].T}, tiny(), checkpoint)
    del tensors[name]
    with pytest.raises(UserError, match=f"missing key {name}"):
        verify(tensors, tiny(), checkpoint)


@pytest.mark.slow
def test_a_conversion_to_another_dtype_is_verified_up_to_its_rounding(torch, tmp_path, leaves):
    half = {path: leaf.astype(np.float16) for path, leaf in leaves.items()}
    checkpoint = write(tmp_path / "half", tiny(), half)
    tensors = reference_tensors(tiny(), unflatten(leaves))
    verify(tensors, tiny(), checkpoint, stored_as="float16")
    with pytest.raises(UserError, match="does not compute"):
        verify(tensors, tiny(), checkpoint)


@pytest.mark.parametrize("dtype", [None, pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_adapters_are_verified_beside_the_weights_and_merged(torch, tmp_path, dtype):
    config = tiny(LORA)
    leaves = random_leaves(config)
    checkpoint = write(tmp_path / "adapted", config, leaves)
    if dtype is None:
        verify(reference_tensors(config, unflatten(leaves)), config, checkpoint)
    Export(checkpoint, dtype=dtype).write(tmp_path / "merged")
    from safetensors.numpy import load_file

    merged = load_file(tmp_path / "merged" / "model.safetensors")
    verify(merged, config, checkpoint, stored_as=dtype)
    unmerged = reference_tensors(tiny(), unflatten({path: leaf for path, leaf in leaves.items() if "/lora_" not in path}))
    with pytest.raises(UserError, match="does not compute"):
        verify(unmerged, config, checkpoint, stored_as=dtype)
    assert not np.array_equal(flatten(merge_lora(unflatten(leaves), LORA))["phi/layers/self_attn/q_proj/kernel"], leaves)


def convert_(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    convert.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_verifies_what_it_wrote_for_pytorch(torch, tmp_path, checkpoint, capsys):
    convert_("--source", checkpoint, "--target", tmp_path / "torch", "--verify")
    assert "verified against PyTorch in float64: mask logits (648 values)" in capsys.readouterr().out
    with pytest.raises(UserError, match="--verify: there is nothing to compare with --format adapter"):
        convert_("--source", checkpoint, "--target", tmp_path / "adapter", "--verify", "--format", "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--dtype", "bfloat16")], ids=["as stored", "bfloat16"])
def test_the_command_verifies_what_it_made_of_pytorchs_weights(torch, tmp_path, checkpoint, capsys, options):
    convert_("--source", checkpoint, "--target", tmp_path / "torch")
    convert_("--source", tmp_path / "torch", "--target", tmp_path / "back", "--verify", *options)
    assert "verified against PyTorch in float64: mask logits (648 values)" in capsys.readouterr().out


def test_torch_is_imported_only_when_it_computes():
    code = "import segearth_r2_jax.checkpoints.verify_torch, segearth_r2_jax.checkpoints.export, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_it_is_one_line_before_anything_is_converted(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "segearth_r2_jax.checkpoints.torch_forward", raising=False)
    monkeypatch.delattr(sys.modules["segearth_r2_jax.checkpoints"], "torch_forward", raising=False)
    with pytest.raises(UserError, match="--verify computes with PyTorch, which is not installed"):
        verify_torch.verify({}, tiny(), checkpoint)
    with pytest.raises(UserError, match="--verify computes with PyTorch, which is not installed"):
        convert_("--source", checkpoint, "--target", tmp_path / "torch", "--verify")
    assert os.listdir(tmp_path) == []
