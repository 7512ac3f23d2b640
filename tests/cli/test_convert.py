"""`segearth-r2 convert`: both directions, what travels along, and what is refused without leaving anything behind."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.torch_files.safetensors_writer import SINGLE
from segearth_r2_jax.checkpoints.torch_files.safetensors_writer import write_safetensors as write_planned
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints
from segearth_r2_jax.cli import convert
from segearth_r2_jax.cli.main import main
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.tokenizer import save_tokenizer, train_tokenizer
from segearth_r2_jax.models.binding import abstract_module, flatten, module_params, unflatten
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

VISION = "model.vision_tower.vision_model"
LAST = f"{VISION}.encoder.layers.1"


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    convert.run(parser.parse_args([str(argument) for argument in arguments]))


def convert_(source: Path, target: Path, *options: str) -> Path:
    run("--source", source, "--target", target, *options)
    return target


def write_safetensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    write_planned(folder, tensors.items(), {name: (array.shape, array.dtype) for name, array in tensors.items()})


def random_params(config: SegEarthR2Config, dtype: np.typing.DTypeLike = np.float32) -> dict:
    rng = np.random.default_rng(0)
    shapes = module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs)))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32).astype(dtype), shapes)


def bits(params) -> dict:
    return {name: (np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) for name, leaf in params.items()}


@pytest.fixture(scope="module")
def config() -> SegEarthR2Config:
    """More rows of the LM head than of the input table, heads and a selected layer that are no defaults."""
    tiny = SegEarthR2Config.tiny(vocab_size=40)
    return dataclasses.replace(
        tiny,
        phi=dataclasses.replace(tiny.phi, embed_rows=33, residual_dropout=0.1),
        swin=dataclasses.replace(tiny.swin, drop_path=0.3),
        pixel_decoder=dataclasses.replace(tiny.pixel_decoder, num_heads=2, num_points=8, remat="full"),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config) -> Path:
    """A checkpoint folder as training leaves it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "trained"
    flat = flatten(random_params(config))
    trainable = {path: leaf for path, leaf in flat.items() if path.startswith(("mask_decoder", "phi/lm_head"))}
    manager.write_config(folder, {"model": config.to_dict(), "template": "train_phi_v0", "mask_canvas": 256})
    save_tokenizer(train_tokenizer(["a roof and a river"], 33), folder / "tokenizer.json")
    manager.save_base(folder, unflatten({path: leaf for path, leaf in flat.items() if path not in trainable}))
    with TrainingCheckpoints(folder) as checkpoints:
        params = jax.tree.map(jnp.asarray, unflatten(trainable))
        checkpoints.save(7, params, optax.sgd(1.0, momentum=0.9).init(params), force=True)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained) -> Path:
    return convert_(trained, tmp_path_factory.mktemp("torch") / "exported")


@pytest.fixture
def torch_folder(tmp_path, exported) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "source"))


def edit_config(folder: Path, edit) -> None:
    content = json.loads((folder / "config.json").read_text())
    edit(content)
    (folder / "config.json").write_text(json.dumps(content))


def test_a_trained_checkpoint_comes_back_from_pytorch_as_it_was(tmp_path, config, trained, exported, capsys):
    assert sorted(os.listdir(exported)) == ["config.json", SINGLE, "tokenizer.json"]
    back = convert_(exported, tmp_path / "back")
    report = capsys.readouterr().out
    assert bits(flatten(manager.load_parameters(back))) == bits(flatten(manager.load_parameters(trained)))
    assert manager.read_model_config(back) == config
    assert manager.read_config(back)["template"] == "train_phi_v0"
    assert sorted(os.listdir(back)) == ["base", "config.json", "conversion.json", "tokenizer.json", "unused"]
    assert "parameters, 0 not used by the network and kept" in report
    assert "not used, not there: predictor.query_feat.*" in report
    assert "prompt template: train_phi_v0" in report


def test_what_the_reference_stores_and_does_not_use_comes_back_byte_for_byte(tmp_path, torch_folder, config, capsys):
    c = config.siglip.hidden_size
    unused = {
        f"{VISION}.head.probe": np.full((1, 1, c), np.pi, np.float16),
        f"{VISION}.post_layernorm.weight": np.arange(c, dtype=np.float32),
        "predictor.query_feat.weight": np.ones((10, config.mask_decoder.hidden_dim), np.float32),
        "predictor.CLASS_proj.layers.0.bias": np.ones(3, ml_dtypes.bfloat16),
        "model.vision_tower_mask.layers.0.blocks.0.attn.relative_position_index": np.arange(config.swin.window**4).reshape(
            (config.swin.window**2,) * 2
        ),
    }
    stored = {name: np.array(tensor) for name, tensor in read_state_dict(torch_folder).items()}
    packed = "predictor.transformer_self_attention_layers.0.self_attn.in_proj_weight"
    stored[packed] = np.arange(stored[packed].size, dtype=np.float32).reshape(stored[packed].shape)
    stored |= unused
    write_safetensors(torch_folder, stored)
    edit_config(torch_folder, lambda content: content.update(extra=[1, None]))  # what this project does not know travels too
    back = convert_(convert_(torch_folder, tmp_path / "orbax"), tmp_path / "back")
    assert bits(read_state_dict(back)) == bits(stored)
    report = capsys.readouterr().out
    assert "5 not used by the network and kept" in report
    for line in ("not used: predictor.query_feat.* (1)", f"used in part: {packed.replace('.0.', '.*.')} (3)"):
        assert f"  {line}\n" in report
    assert json.loads((back / "config.json").read_text()) == json.loads((torch_folder / "config.json").read_text())


def test_dtype_changes_parameters_on_the_way_in_and_everything_on_the_way_out(tmp_path, torch_folder):
    half = convert_(torch_folder, tmp_path / "half", "--dtype", "bfloat16")
    params = flatten(manager.load_parameters(half))
    assert {leaf.dtype.name for leaf in params.values()} == {"bfloat16"}
    out = convert_(half, tmp_path / "out", "--dtype", "float32")
    assert {tensor.dtype.name for tensor in read_state_dict(out).values()} == {"float32"}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    name = "SEG_token_projector.weight"
    np.testing.assert_array_equal(read_state_dict(out)[name], params["seg_projector/kernel"].astype(np.float32).T)


def test_a_value_that_the_dtype_cannot_hold_is_refused(tmp_path, torch_folder):
    stored = {name: np.array(tensor) for name, tensor in read_state_dict(torch_folder).items()}
    stored["SEG_token_projector.bias"][0] = 1e6
    write_safetensors(torch_folder, stored)
    with pytest.raises(UserError, match=r"key SEG_token_projector.bias: its largest value 1e\+06 does not fit into float16"):
        convert_(torch_folder, tmp_path / "half", "--dtype", "float16")
    assert not (tmp_path / "half").exists()


def test_adapters_are_merged_on_the_way_out(tmp_path, config):
    lora = LoraConfig(rank=2, alpha=3.0)
    adapted = dataclasses.replace(config, phi=dataclasses.replace(config.phi, lora=lora))
    params = random_params(adapted)
    manager.write_config(tmp_path / "lora", {"model": adapted.to_dict(), "template": "train_phi_v0"})
    manager.save_base(tmp_path / "lora", params)
    out = read_state_dict(convert_(tmp_path / "lora", tmp_path / "out"))
    attention = params["phi"]["layers"]["self_attn"]
    for name in ("q_proj", "v_proj"):
        a, b = (attention[name][leaf][1].astype(np.float64) for leaf in ("lora_a", "lora_b"))
        expected = attention[name]["kernel"][1] + a @ b * 3.0 / 2
        np.testing.assert_allclose(np.asarray(out[f"model.layers.1.self_attn.{name}.weight"]).T, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["model.layers.1.self_attn.k_proj.weight"], attention["k_proj"]["kernel"][1].T)


def test_released_weights_get_the_prompt_that_the_reference_evaluates_with_unless_told(tmp_path, torch_folder):
    edit_config(torch_folder, lambda content: content["segearth_r2_jax"].pop("template"))
    assert manager.read_config(convert_(torch_folder, tmp_path / "a"))["template"] == "eval_llama2"
    told = convert_(torch_folder, tmp_path / "b", "--template", "train_phi_v0")
    assert manager.read_config(told)["template"] == "train_phi_v0"
    with pytest.raises(UserError, match="--template: only for PyTorch weights"):
        convert_(told, tmp_path / "c", "--template", "train_phi_v0")


def test_the_selected_layer_of_the_tower_is_read_from_the_file(tmp_path, torch_folder):
    def select_earlier(content):
        content["vision_config"]["vision_tower"]["mm_vision_select_layer"] -= 1

    before = manager.read_model_config(convert_(torch_folder, tmp_path / "a")).siglip
    edit_config(torch_folder, select_earlier)
    folder = convert_(torch_folder, tmp_path / "b")
    after = manager.read_model_config(folder).siglip
    assert after.layers_built == before.layers_built - 1
    assert sum(name.startswith(f"{VISION}.encoder.layers.{after.layers_built}.") for name in manager.load_unused(folder)) == 16


@pytest.mark.parametrize(
    ("where", "name", "value", "message"),
    [
        ((), "hidden_act", "relu", "hidden_act is 'relu'; this network computes 'gelu_new' or 'gelu_pytorch_tanh' only"),
        ((), "qk_layernorm", True, "qk_layernorm is True"),
        ((), "rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling is"),
        ((), "num_key_value_heads", 1, "num_key_value_heads 1 differs"),
        ((), "model_type", "llama", "model_type is 'llama'"),
        ((), "num_hidden_layers", "many", "num_layers"),
        ((), "num_hidden_layers", 10**9, "num_hidden_layers is 1000000000; expected at most 1000"),
        ((), "hidden_size", "wide", "do not describe a network"),
        ((), "segearth_r2_jax", [], "do not describe a network"),
        ((), "partial_rotary_factor", None, "no partial_rotary_factor"),
        ((), "vision_config", None, "no vision_config.vision_tower"),
        (("vision_config", "vision_tower"), "hidden_act", "quick_gelu", "vision_tower: hidden_act is 'quick_gelu'"),
        (("vision_config", "vision_tower"), "mm_vision_select_layer", None, "no mm_vision_select_layer"),
        (("vision_config", "vision_tower"), "mm_vision_select_layer", 99, "select_layer 99 is none of"),
        (("vision_config", "mm_projector"), "mm_projector_type", "linear", "mm_projector_type is 'linear'"),
    ],
)
def test_attributes_that_change_numbers_are_honoured_or_refused(tmp_path, torch_folder, where, name, value, message):
    def change(content):
        for key in where:
            content = content[key]
        content[name] = value

    edit_config(torch_folder, change)
    with pytest.raises(UserError, match=message):
        convert_(torch_folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.layers.1.mlp.fc2.bias"), "missing key model.layers.1.mlp.fc2.bias"),
        (lambda w: w.pop("lm_head.weight"), "missing key lm_head.weight"),
        (lambda w: w.pop("model.vision_tower_mask.norm3.bias"), "missing key model.vision_tower_mask.norm3.bias"),
        (lambda w: w.update({"lm_head.bias": np.zeros(40)}), r"unknown key lm_head.bias \(shape \[40\]\)"),
        (lambda w: w.update({"model.layers.9.mlp.fc2.bias": np.zeros(2)}), "unknown key model.layers.9.mlp.fc2.bias"),
        (lambda w: w.update({"SEG_token_projector.bias": np.zeros(3)}), r"wrong shape of key SEG_token_projector.bias: \[3\]"),
    ],
)
def test_a_key_that_is_missing_unknown_or_misshapen_is_named(tmp_path, torch_folder, change, message):
    stored = {name: np.array(tensor) for name, tensor in read_state_dict(torch_folder).items()}
    change(stored)
    write_safetensors(torch_folder, stored)
    with pytest.raises(UserError, match=message):
        convert_(torch_folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


def test_nothing_is_overwritten_without_force(tmp_path, torch_folder):
    target = tmp_path / "out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("five years of work")
    convert_(torch_folder, target)
    before = manager.read_config(target)
    with pytest.raises(UserError, match=f"{target}: exists; choose another target or pass --force"):
        convert_(torch_folder, target, "--dtype", "bfloat16")
    assert manager.read_config(target) == before
    convert_(torch_folder, target, "--dtype", "bfloat16", "--force")
    assert manager.load_parameters(target)["seg_projector"]["bias"].dtype == ml_dtypes.bfloat16
    with pytest.raises(UserError, match="is no checkpoint folder; it is not replaced"):
        convert_(torch_folder, tmp_path / "other", "--force")
    assert sorted(os.listdir(tmp_path)) == ["other", "out", "source"]
    assert os.listdir(tmp_path / "other") == ["thesis.txt"]


def test_the_source_is_never_the_target(tmp_path, torch_folder):
    for target in (torch_folder, tmp_path):
        with pytest.raises(UserError, match="is or holds the source"):
            convert_(torch_folder, target, "--force")


def test_a_source_that_is_neither_kind_or_both_is_refused(tmp_path, torch_folder, trained):
    with pytest.raises(UserError, match="absent: no such file or folder"):
        convert_(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no weights there; expected PyTorch's"):
        convert_(tmp_path / "empty", tmp_path / "out")
    shutil.copytree(trained / "base", torch_folder / "base")
    with pytest.raises(UserError, match="holds PyTorch weights and an Orbax checkpoint"):
        convert_(torch_folder, tmp_path / "out")


def test_a_source_without_its_configuration_is_refused(tmp_path, torch_folder):
    (torch_folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"source/config.json: no such file"):
        convert_(torch_folder, tmp_path / "out")


def test_relative_paths_work(tmp_path, torch_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert_(Path("source"), Path("deep/er/out"))
    assert manager.load_parameters("deep/er/out").keys() == manager.load_parameters(tmp_path / "deep" / "er" / "out").keys()


def test_a_name_from_a_file_does_not_break_the_line(tmp_path, torch_folder, capsys):
    stored = {name: np.array(tensor) for name, tensor in read_state_dict(torch_folder).items()}
    write_safetensors(torch_folder, {**stored, "all is well\nreally": np.zeros(1)})
    with pytest.raises(SystemExit) as end:
        main(["convert", "--source", str(torch_folder), "--target", str(tmp_path / "out")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("segearth-r2: error: unknown key all is well really (shape [1])")
    assert error.count("\n") == 1


def test_a_dry_run_writes_nothing_but_the_report(tmp_path, torch_folder, trained, capsys):
    for source, into in ((torch_folder, "siglip/patch_embedding/kernel"), (trained, f"{VISION}.embeddings.patch_embedding.weight")):
        run("--source", source, "--dry-run", "--report", tmp_path / "report.json")
        assert "(nothing written)" in capsys.readouterr().out
        report = json.loads((tmp_path / "report.json").read_text())
        assert any(into in entry["goes"] for entry in report["entries"])
        assert not any(entry["crc32c"] for entry in report["entries"])
        assert sorted(os.listdir(tmp_path)) == ["report.json", "source"]
    with pytest.raises(UserError, match="--target: expected the folder to write"):
        run("--source", torch_folder)
    for arguments, message in (
        (("--source", torch_folder, "--assemble"), "expected either --source, or --assemble"),
        (("--source", torch_folder, "--siglip", tmp_path), "--siglip: only with --assemble"),
        (("--assemble", "--mipha", tmp_path), "--assemble: expected --mask2former as well"),
        (("--source", trained, "--base", tmp_path), "--base: only for PyTorch weights"),
        (("--source", torch_folder, "--format", "adapter"), "--format: only for a checkpoint folder"),
        (("--source", torch_folder, "--base", torch_folder), "--base: only for adapters and DeepSpeed checkpoints"),
    ):
        with pytest.raises(UserError, match=message):
            run(*arguments, "--dry-run")
