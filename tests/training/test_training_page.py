"""docs/training.md: its commands are accepted, and the fields and files that it names exist."""

from __future__ import annotations

import operator
import re
import shlex
from pathlib import Path

import pytest

from segearth_r2_jax.cli.train import read_config_file
from segearth_r2_jax.models.binding import abstract_module, flatten, module_params
from segearth_r2_jax.models.segearth_r2 import SegEarthR2
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.state import split_params

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "training.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("segearth-r2 train")
]
# The cells of tables that hold overrides only.
CELLS = re.findall(r"`((?:--config\.\S+ ?)+)`", PAGE)


def run_of(config: str, overrides: list[str]) -> RunConfig:
    return RunConfig.from_config_dict(read_config_file(str(REPOSITORY / config), overrides))


def trained(run: RunConfig) -> set[str]:
    shapes = module_params(abstract_module(lambda rngs: SegEarthR2(run.model, rngs=rngs)))
    return set(flatten(split_params(shapes, run.trainable)[0]))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[words.index("--workdir") + 1])
def test_a_command_is_accepted(words):
    assert trained(run_of(words[words.index("--config") + 1], [word for word in words if word.startswith("--config.")]))


def test_the_tables_say_what_is_trained():
    assert len(CELLS) == 3
    everything, lora, language = (trained(run_of("configs/segearth_r2_tiny.py", shlex.split(cell))) for cell in CELLS)
    assert {path.partition("/")[0] for path in everything} > {"siglip", "swin", "phi"}
    assert {path for path in lora if path.startswith("phi/")} == {
        "phi/lm_head/kernel",
        *(f"phi/layers/self_attn/{name}/lora_{side}" for name in ("q_proj", "v_proj") for side in "ab"),
    }
    assert {path.partition("/")[0] for path in lora} == {"phi", "pixel_decoder", "mask_decoder", "seg_projector"}
    assert not {path for path in language if path.startswith(("siglip", "swin")) or "lora_" in path}
    published = run_of("configs/segearth_r2_lasers.py", [])
    assert published.trainable == run_of("configs/segearth_r2_tiny.py", shlex.split(CELLS[1])).trainable
    with_swin = re.search(r"--config\.trainable=\"\((.*'\^swin')\)\"", PAGE).group(1)
    assert [word.strip("'") for word in with_swin.split(",")] == [*published.trainable, "^swin"]


def test_the_fields_that_it_names_exist():
    config = read_config_file(str(REPOSITORY / "configs" / "segearth_r2_tiny.py"), [])
    named = set(re.findall(r"`config\.([\w.]+)`", PAGE)) - {"json"}
    assert len(named) > 8
    for name in named:
        operator.attrgetter(name)(config)
    for file in re.findall(r"`(configs/\w+\.py|segearth_r2_jax/[\w/]+\.py)`", PAGE):
        assert (REPOSITORY / file).is_file(), file
    for target in re.findall(r"\]\(([\w/.]+)\)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target
