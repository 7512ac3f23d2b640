"""The command itself, on a run so small that it compiles in seconds."""

import importlib.util
import json

import pytest

from segearth_r2_jax.cli.main import main
from segearth_r2_jax.models.binding import abstract_module, flatten, module_params
from segearth_r2_jax.models.segearth_r2 import SegEarthR2

CONFIG = """\
from micro_run import micro_run

def get_config():
    return micro_run("", tokenizer="", trainable=("^mask_decoder", "^phi/lm_head"), frozen_dtype="bfloat16").to_config_dict()
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "micro.py"
    path.write_text(CONFIG)
    return str(path)


def _refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["compile", *arguments])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


def test_a_training_step_and_what_predict_runs(config, tmp_path, capfd):
    pytest.importorskip("libtpu", reason="libtpu is absent: nothing can be compiled for a TPU")
    from micro_run import micro_model

    output = tmp_path / "report.json"
    main(["compile", "--config", config, "--topology", "v5e:2x2", "--program", "both", "--batch-per-device", "2", "--output", str(output)])
    captured = capfd.readouterr()
    assert captured.err == ""
    assert "4 devices (TPU v5 lite), 15.75 GiB" in captured.out
    assert captured.out.count("fits: needs") == 4
    written = json.loads(output.read_text())
    programs = {program["program"]: program for program in written["programs"]}
    assert list(programs) == ["train", "predict: encode", "predict: answer", "predict: masks"]
    train = programs["train"]
    assert train["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert train["sizes"] == {"images per device": 2, "images": 8, "tokens": 256, "masks": 4}
    assert train["cost"]["unknown_loops"] == []
    assert train["cost"]["executed_flops"] >= train["cost"]["model_flops"]
    assert {exchange["axes"] for exchange in train["cost"]["exchanges"]} == {"fsdp"}
    # A device holds all parameters in bfloat16 while it answers, whichever of the three programs runs.
    model = module_params(abstract_module(lambda rngs: SegEarthR2(micro_model(), rngs=rngs)))
    weights = 2 * sum(leaf.size for leaf in flatten(model).values())
    for name in ("predict: encode", "predict: answer", "predict: masks"):
        assert programs[name]["memory"]["needed"] >= weights
        assert programs[name]["cost"]["exchanges"] == []
    assert programs["predict: answer"]["cost"]["unknown_trips"] == 127


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v9:2x2"], "v9:2x2: no topology that libtpu knows"),
        (["--topology", "v5e"], "expected one such as v5e:16x16"),
        (["--topology", "h100:8"], "only TPU topologies can be compiled for"),
        (["--topology", "v5e:2x2", "--mesh", "data=3,fsdp=1"], "does not fit 4 devices"),
        (["--topology", "v5e:2x2", "--mesh", "rows=4"], "expected data=N,fsdp=N,tensor=N"),
        (["--topology", "v5e:2x2", "--mesh", "data=two"], "expected data=N,fsdp=N,tensor=N"),
        (["--topology", "v5e:2x2"], "give --batch-per-device"),
        (["--topology", "v5e:2x2", "--batch-per-device", "1", "--tokens", "16"], "the image alone takes 16"),
        (["--topology", "v5e:2x2", "--batch-per-device", "1", "--config.step.accumulate=2"], "config.step.accumulate"),
        (["--topology", "v5e:2x2", "--config.nothing=1"], "nothing"),
        (["--topology", "v5e:2x2", "--output", "/nowhere/report.json"], "/nowhere: no such folder"),
        (["--topology", "v5e:2x2", "--batch-per-device", "0"], "expected a number above 0"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(config, capsys, arguments, words):
    pytest.importorskip("libtpu", reason="libtpu is absent: nothing can be compiled for a TPU")
    assert words in _refused(capsys, "--config", config, *arguments)


def test_a_missing_configuration_is_named(capsys):
    assert "nothing.py: no such configuration file" in _refused(capsys, "--config", "nothing.py", "--topology", "v5e:2x2")


def test_without_libtpu_it_says_what_to_install(config, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else found(name, *rest))
    assert "pip install libtpu" in _refused(capsys, "--config", config, "--topology", "v5e:2x2")
