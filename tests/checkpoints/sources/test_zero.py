"""DeepSpeed checkpoints of every stage: all parameters bit for bit out of the ranks' parts, and every damage named."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from source_files import (  # noqa: E402
    random_weights,
    same,
    tiny_config,
    write_merged,
    write_mipha,
    write_tokenizer_without_seg,
)
from zero_files import PEFT, Run, write_zero  # noqa: E402

from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map  # noqa: E402
from segearth_r2_jax.checkpoints.sources.open import is_source, open_source  # noqa: E402
from segearth_r2_jax.checkpoints.sources.zero import read_zero  # noqa: E402
from segearth_r2_jax.errors import UserError  # noqa: E402
from segearth_r2_jax.models.layers import LoraConfig  # noqa: E402

TRAINED = ("lm_head.", "pixel_decoder.", "predictor.", "SEG_token_projector.")


def small_run(step: int = 1000) -> Run:
    """Sizes that no number of ranks divides, a parameter smaller than a rank's part, a scalar and an empty one."""
    rng = np.random.default_rng(3)
    shapes = [
        {"module.a": (5, 7), "module.b": (3,), "module.scalar": (), "module.empty": (0, 4)},
        {"module.c": (11, 3, 2), "module.d": (1,)},
    ]
    groups = [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in group.items()} for group in shapes]
    frozen = {"module.e": rng.standard_normal((9, 5)).astype(np.float16), "module.f": rng.standard_normal(2).astype(np.float16)}
    return Run(groups, frozen, {"module.index": np.arange(12).reshape(3, 4)}, {"module.tied": "module.a"}, step)


def expected(run: Run) -> dict[str, np.ndarray]:
    everything = {**run.frozen, **run.buffers}
    for group in run.groups:
        everything |= group
    everything |= {name: everything[source] for name, source in run.shared.items()}
    return {name.removeprefix("module."): array for name, array in everything.items()}


def check(folder: Path, run: Run) -> None:
    found, _ = read_zero(folder)
    assert found.tensors.keys() == expected(run).keys() == found.origins.keys()
    for name, array in expected(run).items():
        read = np.asarray(found.tensors[name])
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes()), name
        assert (found.tensors[name].shape, found.tensors[name].dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize(("ranks", "padded"), list(itertools.product((1, 2, 3, 8), (True, False))))
def test_stages_1_and_2_give_every_parameter_back(tmp_path, ranks, padded):
    write_zero(tmp_path, small_run(), stage=2, ranks=ranks, padded=padded, bf16=padded)
    check(tmp_path, small_run())


@pytest.mark.parametrize(("ranks", "sub_groups"), list(itertools.product((1, 2, 3, 8), (1, 3))))
def test_stage_3_gives_every_parameter_back(tmp_path, ranks, sub_groups):
    write_zero(tmp_path, small_run(), stage=3, ranks=ranks, sub_groups=sub_groups)
    check(tmp_path, small_run())


def test_more_ranks_than_ten_are_read_in_their_order(tmp_path):
    write_zero(tmp_path, small_run(), stage=2, ranks=12)
    check(tmp_path, small_run())


def test_the_folder_of_a_step_and_files_of_old_torch_releases_are_read(tmp_path):
    step = write_zero(tmp_path, small_run(), stage=2, ranks=2, legacy=True)
    (tmp_path / "latest").unlink()
    check(step, small_run())


def test_the_origins_say_from_how_many_parts_a_parameter_was_joined(tmp_path):
    step = write_zero(tmp_path, small_run(), stage=3, ranks=2)
    found, stage = read_zero(tmp_path)
    assert stage == 3
    assert found.origins["a"].transform == "joined from 2 partitions"
    assert (found.origins["a"].file, found.origins["a"].key) == (str(step / "bf16_zero_pp_rank_*_mp_rank_00_optim_states.pt"), "module.a")
    assert found.origins["e"].file == str(step / "zero_pp_rank_*_mp_rank_00_model_states.pt")
    assert found.origins["d"].transform == "renamed"  # one rank has all of it
    assert found.origins["tied"].transform == "shared with module.a"
    assert found.origins["index"].transform == "renamed"


def test_a_parameter_that_one_rank_has_is_a_view_of_its_file(tmp_path):
    write_zero(tmp_path, small_run(), stage=2, ranks=2)
    found, _ = read_zero(tmp_path)
    views = {name for name, tensor in found.tensors.items() if tensor.load().size and not tensor.load().flags.owndata}
    assert {"b", "scalar", "d", "e", "f", "index"} <= views
    assert all(tensor.files for name, tensor in found.tensors.items() if name != "empty")


OPTIM_1 = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
MODEL_1 = "zero_pp_rank_1_mp_rank_00_model_states.pt"
MODEL_0_OF_3 = "zero_pp_rank_0_mp_rank_00_model_states.pt"
MODEL_0 = "mp_rank_00_model_states.pt"


GROUPS_12 = "single_partition_of_fp32_groups"


def optimizer(change):
    """A change of the dict of optimizer states in a file."""
    return lambda content: change(content["optimizer_state_dict"])


def cut(name):
    return optimizer(lambda state: state.update({name: [group[:-9] for group in state[name]]}))


def put(name, **values):
    """A change of the dict `name` of a file; "__" stands for a dot."""
    return lambda content: content[name].update({key.replace("__", "."): value for key, value in values.items()})


@pytest.mark.parametrize(
    ("stage", "file", "change", "message"),
    [
        (2, OPTIM_1, lambda content: content.pop("optimizer_state_dict"), "has no dict optimizer_state_dict"),
        (2, OPTIM_1, put("optimizer_state_dict", partition_count=[3]), "was written by 3 ranks, but .* has the files of 2"),
        (2, OPTIM_1, put("optimizer_state_dict", partition_count="x"), "partition_count is 'x'"),
        (2, OPTIM_1, cut(GROUPS_12), r"the ranks have \d+ values of parameter group 0, but .* need 39"),
        (2, OPTIM_1, optimizer(lambda state: state.pop(GROUPS_12)), "has no single_partition_of_fp32_groups"),
        (2, OPTIM_1, optimizer(lambda state: state.update({GROUPS_12: [1]})), "its float32 weights are no list of flat tensors"),
        (2, OPTIM_1, optimizer(lambda state: state[GROUPS_12].pop()), "their parameter groups differ"),
        (
            2,
            OPTIM_1,
            optimizer(lambda state: state[GROUPS_12].append(state[GROUPS_12].pop().double())),
            "weights in float64, .* in float32",
        ),
        (
            2,
            OPTIM_1,
            optimizer(lambda state: state["base_optimizer_state"]["state"][0].update(step=9)),
            "is of step 9, but .* of step 1000",
        ),
        (3, OPTIM_1, cut("fp32_flat_groups"), r"has \d+ values of a group of which .* has \d+"),
        (3, MODEL_1, lambda content: content.update(global_steps=500), "is of step 500, but .* of step 1000; expected all ranks of one"),
        (3, MODEL_1, lambda content: content["frozen_param_fragments"].pop("module.e"), "has no frozen parameter module.e, whose shape"),
        (3, MODEL_1, put("frozen_param_fragments", module__e=torch.ones(3)), r"module.e has shape \[3\], expected \[23\]"),
        (3, MODEL_1, put("frozen_param_fragments", module__e=torch.ones(23)), "store module.e as float16 and float32; expected one dtype"),
        (3, MODEL_0_OF_3, lambda content: content["param_shapes"][0].pop("module.a"), r"has \d+ values, but its parts of all .* are \d+"),
        (2, MODEL_0, lambda content: content["param_shapes"][0].pop("module.a"), "the ranks have 40 values .* need 4"),
        (2, MODEL_0, lambda content: content["param_shapes"].pop(), "has 1 parameter groups, but .* has 2"),
        (2, MODEL_0, lambda content: content["param_shapes"][0].update(x=(2**40, 2)), "the ranks have .* values .* need"),
        (2, MODEL_0, lambda content: content["param_shapes"][0].update(x=(2**40, 2**30)), "param_shapes has 'x' .*; expected shapes"),
        (2, MODEL_0, lambda content: content["param_shapes"][0].update(x=(1,) * 100), "param_shapes has 'x' .*; expected shapes"),
        (2, MODEL_0, lambda content: content["param_shapes"][0].update(x=(-5, 7)), r"param_shapes has 'x' with \(-5, 7\); expected shapes"),
        (2, MODEL_0, lambda content: content.pop("param_shapes"), "has no list param_shapes"),
        (2, MODEL_0, put("frozen_param_shapes", module__f=(3,)), r"frozen parameter module.f has shape \[2\], expected \[3\]"),
        (2, MODEL_0, put("frozen_param_shapes", b=(2,)), "has no frozen parameter b"),
        (2, MODEL_0, put("module", module__odd=3), "module.odd is a int; expected a tensor"),
        (2, MODEL_0, put("module", base_model__model__b=torch.ones(2)), "duplicate key b"),
    ],
)
def test_files_that_do_not_agree_are_named(tmp_path, stage, file, change, message):
    write_zero(tmp_path, small_run(), stage=stage, ranks=2, edit={file: change})
    with pytest.raises(UserError, match=message):
        read_zero(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("../evil", "expected the name of a folder beside it, such as global_step1000"),
        ("/etc", "expected the name of a folder beside it"),
        ("..", "expected the name of a folder beside it"),
        (".", "expected the name of a folder beside it"),
        ("", "expected the name of a folder beside it"),
        ("a\\b", "expected the name of a folder beside it"),
        ("a\0b", "expected the name of a folder beside it"),
        ("\xff" * 300, "expected the name of a folder beside it"),
        ("global_step7", "names global_step7, but there is no such folder beside it"),
    ],
)
def test_a_latest_that_leads_elsewhere_is_refused(tmp_path, content, message):
    write_zero(tmp_path / "run", small_run(), stage=2, ranks=1)
    write_zero(tmp_path / "evil", small_run(), stage=2, ranks=1)
    (tmp_path / "run" / "latest").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        read_zero(tmp_path / "run")


def test_missing_and_surplus_files_are_named(tmp_path):
    step = write_zero(tmp_path, small_run(), stage=3, ranks=3)
    whole = shutil.copytree(tmp_path, tmp_path.parent / "whole")

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            read_zero(tmp_path)
        shutil.rmtree(tmp_path)
        shutil.copytree(whole, tmp_path)

    (step / OPTIM_1).unlink()
    refused(r"no file \*_optim_states.pt of rank 1; the highest rank is 2")
    (step / OPTIM_1.replace("rank_1", "rank_2")).unlink()
    refused(r"was written by 3 ranks, but .* has the files of 2")
    (step / MODEL_1.replace("rank_1", "rank_2")).unlink()
    refused(r"2 files \*_model_states.pt; expected 3 for 3 ranks")
    shutil.copy(step / OPTIM_1, step / OPTIM_1.removeprefix("bf16_"))
    refused(r"rank 1 has another file, bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt; expected one")
    shutil.copy(step / OPTIM_1, step / OPTIM_1.replace("mp_rank_00", "mp_rank_01"))
    refused("a file of model or expert parallelism")
    for file in step.glob("*model_states*"):
        file.unlink()
    refused(r"no files \*_model_states.pt; a ZeRO checkpoint has them")
    (step / OPTIM_1).write_bytes((step / OPTIM_1).read_bytes()[:2000])
    refused(OPTIM_1)


def test_a_rank_file_of_another_step_is_refused(tmp_path):
    step = write_zero(tmp_path / "now", small_run(), stage=3, ranks=2)
    before = write_zero(tmp_path / "before", small_run(step=900), stage=3, ranks=2)
    shutil.copy(before / OPTIM_1, step / OPTIM_1)
    with pytest.raises(UserError, match=r"rank_1_mp_rank_00_optim_states.pt: is of step 900, but .* of step 1000"):
        read_zero(tmp_path / "now")


# Whole networks.


def network_run(weights: dict[str, np.ndarray], *, base_layer: bool) -> tuple[Run, dict[str, np.ndarray]]:
    """A run of the reference's kind: adapters, decoders, head and projector trained in float32, the rest frozen in half precision."""
    final, trained, frozen, buffers = {}, {}, {}, {}
    for name, weight in weights.items():
        key = PEFT + name
        if ".lora_" in name:
            key = key.replace(".weight", ".default.weight")
        elif base_layer and ("q_proj" in name or "v_proj" in name) and ".layers." in name and "vision_tower" not in name:
            key = key.replace("_proj.", "_proj.base_layer.")
        if ".lora_" in name or name.startswith(TRAINED):
            trained[key] = final[name] = weight
        elif name.endswith("relative_position_index"):
            buffers[key] = final[name] = weight
        else:
            frozen[key] = final[name] = weight.astype(np.float16)
    return Run([trained], frozen, buffers), final


@pytest.mark.parametrize(("stage", "base_layer"), [(2, False), (2, True), (3, False), (3, True)])
def test_a_run_of_the_reference_is_a_whole_network(tmp_path, stage, base_layer):
    config = tiny_config(rank=4)
    run, final = network_run(random_weights(config), base_layer=base_layer)
    folder = tmp_path / "checkpoint-1000"
    write_zero(folder, run, stage=stage, ranks=2, sub_groups=2)
    content = json.loads((write_merged(tmp_path / "merged", {}, config) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content))
    write_tokenizer_without_seg(folder)
    assert is_source(folder)
    with pytest.raises(UserError, match="give --lora-alpha"):
        open_source(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16, "lora_dropout": 0.05}))
    opened = open_source(folder)
    assert opened.tensors.keys() == final.keys()
    same(opened, final)
    key_map(config).check({name: tensor.shape for name, tensor in opened.tensors.items()})
    assert opened.lora == LoraConfig(rank=4, alpha=16.0, dropout=0.05)
    assert opened.kind == f"DeepSpeed ZeRO checkpoint, stage {'3' if stage == 3 else '1 or 2'} with adapters"
    assert (opened.folder, opened.tokenizer) == (folder, folder)
    assert open_source(folder / "global_step1000").tokenizer == folder
    with pytest.raises(UserError, match="--lora-rank is 8, but its adapters have rank 4"):
        open_source(folder, lora_rank=8)


def test_a_run_without_its_frozen_parameters_takes_them_from_its_base(tmp_path):
    config = tiny_config(rank=4)
    weights = random_weights(config)
    run, final = network_run(weights, base_layer=False)
    start = {name: weight.astype(np.float16) for name, weight in weights.items() if ".lora_" not in name}
    base = write_merged(tmp_path / "base", start, config)
    bare = Run(run.groups, {}, {})
    folder = tmp_path / "run"
    write_zero(folder, bare, stage=3, ranks=2)
    with pytest.raises(
        UserError, match=r"run has no token embeddings, .*Swin tower; give the weights that the run started from with --base"
    ):
        open_source(folder, lora_alpha=16)
    opened = open_source(folder, base=base, lora_alpha=16)
    index = {name: start[name] for name in final if name.endswith("relative_position_index")}
    same(opened, {**final, **index})
    assert opened.lora == LoraConfig(rank=4, alpha=16.0)
    assert opened.origins["model.embed_tokens.weight"].file == str(base)


def test_a_run_with_everything_in_it_needs_the_base_for_its_configuration_only(tmp_path):
    weights = random_weights(tiny_config())
    run, final = network_run(weights, base_layer=False)  # no adapters: fine-tuned in full
    mipha = write_mipha(tmp_path / "mipha", weights, tiny_config())
    write_zero(tmp_path / "run", run, stage=2, ranks=2)
    with pytest.raises(UserError, match=r"run: no config\.json; give the weights that the run started from with --base"):
        open_source(tmp_path / "run")
    opened = open_source(tmp_path / "run", base=mipha)
    same(opened, final)
    assert (opened.lora, opened.tokenizer, opened.folder) == (None, mipha, tmp_path / "run")
    assert opened.config["mask_decode_train"] is True
