"""What is said of a program that fits, and of one that does not."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import tpu_mesh

from segearth_r2_jax.ahead_of_time.programs import Program
from segearth_r2_jax.ahead_of_time.report import Memory, compile_program
from segearth_r2_jax.ahead_of_time.tables import report_lines, verdict
from segearth_r2_jax.ahead_of_time.topology import out_of_memory, tpu_devices, usable_memory
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.sharding.chips import chip_of
from segearth_r2_jax.training.flops import FlopCount

GIB = 2**30


def _program(function, *shapes, donate=(), resident=0, unused=0) -> Program:
    mesh = tpu_mesh(1, 1, 1)
    place = NamedSharding(mesh, P())
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in shapes]
    traced = jax.jit(function, donate_argnums=donate).trace(*arguments)
    size = sum(argument.size * 2 for argument in arguments) + unused
    return Program("square", traced, size, mesh, FlopCount({"all": 8e9}), {"rows": 1}, resident=resident)


def test_a_program_that_fits():
    device = tpu_mesh(1, 1, 1).devices.flat[0]
    usable, side = usable_memory(device), 8192
    matrix = side * side * 2
    report = compile_program(
        _program(lambda x, y: x @ y, (side, side), (side, side), donate=0, resident=7, unused=5), chip_of("TPU v5 lite"), usable
    )
    memory, cost = report.memory, report.cost
    # One of the two arguments makes room for the product.
    assert (memory.arguments, memory.outputs, memory.aliased) == (2 * matrix, matrix, matrix)
    assert memory.resident == 12
    assert memory.needed == 2 * matrix + memory.temporaries + 12
    assert memory.fits
    assert cost.executed_flops == 2 * side**3
    assert cost.model_flops == 8e9
    assert 3 * matrix <= cost.memory_bytes <= 6 * matrix
    assert (cost.exchanges, cost.collective_seconds) == ([], 0)
    assert cost.compute_seconds == 2 * side**3 / 197e12
    assert (cost.seconds, cost.bound) == (max(cost.compute_seconds, cost.memory_seconds), "compute")
    values = json.loads(json.dumps(report.to_dict()))
    assert values["memory"]["fits"] is True
    assert values["cost"]["seconds"] == cost.seconds
    text = "\n".join(report_lines(report, chip_of("TPU v5 lite")))
    assert "fits: needs 0.38 GiB" in text
    assert "bound by compute" in text


def test_a_program_that_does_not_fit_is_a_report_too():
    device = tpu_mesh(1, 1, 1).devices.flat[0]
    usable = usable_memory(device)
    report = compile_program(_program(lambda x: jnp.sort(x, axis=0), (2**15, 5 * 2**15)), chip_of("TPU v5 lite"), usable)
    memory = report.memory
    assert usable == 15.75 * GIB
    assert not memory.fits
    assert (memory.arguments, memory.temporaries, report.cost) == (10 * GIB, None, None)
    # Argument and result at the least.
    assert memory.needed >= 20 * GIB
    (_, first, *_) = report_lines(report, None)
    assert first.strip() == verdict(memory)
    assert first.strip().startswith("does not fit: needs ")
    assert json.dumps(report.to_dict())


def test_of_an_unknown_chip_the_time_is_not_estimated():
    report = compile_program(_program(lambda x: x @ x, (256, 256)), None, 2**30)
    assert report.cost.seconds is None
    assert "no estimate" in report_lines(report, None)[-1]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (82.82G) "
            "exceeds available HBM (15.75G). HLO module: jit_step.",
            (round(82.82 * GIB), round(15.75 * GIB)),
        ),
        (
            "Ran out of memory in memory space hbm. Used 2.64G of 600.50M hbm. Exceeded hbm capacity",
            (round(2.64 * GIB), round(600.5 * 2**20)),
        ),
        ("INTERNAL: something else", None),
    ],
)
def test_the_compilers_words_about_memory(message, expected):
    assert out_of_memory(message) == expected


def test_fits_and_does_not_fit_say_by_how_much():
    assert verdict(Memory(0, 0, 0, 0, 0, 10 * GIB, 16 * GIB)) == "fits: needs 10.00 GiB, has 16.00 GiB, 6.00 GiB to spare"
    assert verdict(Memory(0, None, None, None, 0, 20 * GIB, 16 * GIB)) == "does not fit: needs 20.00 GiB, has 16.00 GiB, over by 4.00 GiB"


@pytest.mark.parametrize("name", ["H100", "a100:8", "gpu", "B200:8x8"])
def test_gpus_cannot_be_compiled_for(name):
    with pytest.raises(UserError, match="only TPU topologies"):
        tpu_devices(name)


def test_a_v4_chip_is_one_device():
    tpu_mesh()
    assert len(tpu_devices("v4:2x2x1")) == 4
