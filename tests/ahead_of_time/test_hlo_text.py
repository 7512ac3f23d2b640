import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import compiled_text, tpu_mesh

from segearth_r2_jax.ahead_of_time.hlo_text import Program, arrays_of


@pytest.mark.parametrize(
    ("text", "bytes", "padded", "space"),
    [
        ("f32[3,5]{1,0}", 60, 60, 0),
        # The last two dimensions are filled up to tiles of 8 x 128.
        ("f32[3,5]{1,0:T(8,128)}", 60, 8 * 128 * 4, 0),
        ("bf16[2,9,130]{2,1,0:T(8,128)(2,1)S(1)}", 2 * 9 * 130 * 2, 2 * 16 * 256 * 2, 1),
        # In another order of dimensions: [130, 9] is [9, 130] in memory.
        ("f32[130,9]{0,1:T(8,128)}", 130 * 9 * 4, 16 * 256 * 4, 0),
        ("s32[100]{0:T(128)}", 400, 512, 0),
        ("pred[7]{0}", 7, 7, 0),
        ("s4[8]{0}", 4, 4, 0),
        ("f8e4m3fn[16]{0}", 16, 16, 0),
        ("f32[]", 4, 4, 0),
        ("c64[2]{0}", 16, 16, 0),
    ],
)
def test_the_size_of_an_array(text, bytes, padded, space):
    (array,) = arrays_of(text)
    assert (array.bytes, array.padded_bytes, array.space) == (bytes, padded, space)


def test_a_tuple_is_its_arrays():
    assert [array.dims for array in arrays_of("(f32[2,3]{1,0}, s32[], bf16[4]{0})")] == [(2, 3), (), (4,)]


LOOP = """\
HloModule small

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[4]{0} get-tuple-element(%state), index=1
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %x)
}

%condition (state.1: (s32[], f32[4])) -> pred[] {
  %state.1 = (s32[], f32[4]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(11)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: f32[4]) -> (s32[], f32[4]) {
  %x.1 = f32[4]{0} parameter(0)
  %start = s32[] constant(3)
  %first = (s32[], f32[4]{0}) tuple(%start, %x.1)
  ROOT %loop = (s32[], f32[4]{0}) while(%first), condition=%condition, body=%body
}
"""


def test_a_loop_runs_from_its_start_to_its_limit():
    program = Program(LOOP)
    # 3, 5, 7, 9: four rounds.
    assert (program.runs["body"], program.unknown_loops) == (4, [])


def test_what_the_compiler_notes_about_a_loop_counts():
    noted = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"6"}}')
    assert Program(noted).runs["body"] == 6


@pytest.mark.parametrize("hidden", ["direction=LT", "%start = s32[] constant(3)", "%two = s32[] constant(2)"])
def test_a_loop_whose_rounds_the_text_does_not_show_is_named(hidden):
    other = {"direction=LT": "direction=NE"}.get(hidden, hidden.replace("constant", "bitcast"))
    program = Program(LOOP.replace(hidden, other), unknown_trips=9)
    assert (program.runs["body"], program.unknown_loops) == (9, ["loop"])


def test_loops_of_a_compiled_program():
    place = NamedSharding(tpu_mesh(1, 1, 1), P())

    def program(x, stop):
        def inner(x):
            return jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, None, length=3)[0]

        x = jax.lax.scan(lambda x, _: (jnp.cos(inner(x)), None), x, None, length=5)[0]
        return jax.lax.while_loop(lambda x: x.sum() < stop, lambda x: jnp.tanh(x @ x), x)

    matrix = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=place)
    text = compiled_text(program, matrix, jax.ShapeDtypeStruct((), jnp.float32, sharding=place))
    read = Program(text, unknown_trips=7)
    assert {5, 15, 7} <= set(read.runs.values())
    assert len(read.unknown_loops) == 1
