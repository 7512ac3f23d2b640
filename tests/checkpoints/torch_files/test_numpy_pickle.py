"""numpy's pickles, as detectron2 keeps weights in them: every protocol, both generations of numpy, read in place."""

from __future__ import annotations

import contextlib
import math
import pickle

import numpy as np
import pytest
import stored_examples

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.checkpoints.torch_files.numpy_pickle import read_numpy_pickle
from segearth_r2_jax.errors import UserError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model_final.pkl"


def read(file, value, protocol=pickle.DEFAULT_PROTOCOL, dumps=pickle.dumps):
    file.write_bytes(dumps(value, protocol=protocol))
    return read_numpy_pickle(file)


def assert_same(lazy, written: np.ndarray) -> None:
    assert isinstance(lazy, LazyTensor)
    assert (lazy.shape, lazy.dtype) == (written.shape, written.dtype.newbyteorder("="))
    array = np.asarray(lazy)
    assert (array.shape, array.dtype) == (lazy.shape, lazy.dtype)
    np.testing.assert_array_equal(array, written)
    assert array.tobytes() == written.astype(lazy.dtype).tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dumps", [pickle.dumps, pickle._dumps])
@pytest.mark.parametrize("order", "<>")
def test_every_dtype_and_layout_in_every_protocol(file, protocol, dumps, order):
    rng = np.random.default_rng(0)
    dtypes = [np.dtype(name).newbyteorder(order) for name in DTYPES]
    written = {dtype.str[1:]: np.frombuffer(rng.bytes(24 * dtype.itemsize), dtype).reshape(2, 3, 4) for dtype in dtypes}
    written |= {
        "b1": rng.integers(0, 2, (2, 3)).astype(bool),
        "scalar": np.array(3.5, f"{order}f4"),
        "empty": np.zeros((0, 3), f"{order}f4"),
        "fortran": np.asfortranarray(written["f4"]),
        "axes": written["i4"].transpose(1, 0, 2),
        "strided": written["i4"][:, ::2],
        "large": np.arange(40_000, dtype=f"{order}f4"),
    }
    back = read(file, {"model": written, "again": written["f4"]}, protocol, dumps)
    assert back["model"].keys() == written.keys()
    for name, array in written.items():
        assert_same(back["model"][name], array)
    assert back["again"] is back["model"]["f4"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_layout_of_detectron2(file, protocol):
    written = {
        "model": {"a.weight": np.ones((3, 2), np.float32)},
        "__author__": "someone",
        "matching_heuristics": True,
        "scale": np.float64(0.5),
    }
    back = read(file, written, protocol)
    assert_same(back["model"]["a.weight"], written["model"]["a.weight"])
    assert (back["__author__"], back["matching_heuristics"], back["scale"]) == ("someone", True, 0.5)
    assert isinstance(back["scale"], np.float64)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_generations_of_numpy_name_their_modules_differently(file, core, protocol):
    array = np.arange(5, dtype=np.float32)
    data = pickle._dumps([array, np.int64(3)], protocol=protocol)
    for name in (b"multiarray", b"numeric"):
        now = np.ndarray.__reduce__(array)[0].__module__.rsplit(".", 1)[0].encode() + b"." + name
        then = core + b"." + name
        # SHORT_BINUNICODE states a length, GLOBAL does not.
        data = data.replace(b"\x8c" + bytes([len(now)]) + now, b"\x8c" + bytes([len(then)]) + then).replace(
            b"c" + now + b"\n", b"c" + then + b"\n"
        )
    file.write_bytes(_without_frames(data))
    back = read_numpy_pickle(file)
    assert core in file.read_bytes()
    assert_same(back[0], array)
    assert back[1] == 3


def _without_frames(data: bytes) -> bytes:
    """The frames of protocol 4 state lengths, which a change of names makes wrong."""
    return data[:2] + data[11:] if data[2:3] == b"\x95" else data


def test_python_2_wrote_bytes_as_texts(file):
    """What Python 2.7 and numpy 1 write in protocol 2 for {'w': array([1, -2], '<f4')}; made by hand after their documentation."""
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
    dtype = b"cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    file.write_bytes(b"\x80\x02}q\x00U\x01w" + array + b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + np.float32([1, -2]).tobytes() + b"tbs.")
    assert_same(read_numpy_pickle(file)["w"], np.float32([1, -2]))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_large_arrays_are_views_of_the_file(file, protocol):
    written = np.arange(30_000, dtype=np.float32).reshape(100, 300)
    back = read(file, {"w": written, "f": np.asfortranarray(written)}, protocol)
    for name in ("w", "f"):
        array = back[name].load()
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert np.shares_memory(array, back[name].load())
        back[name].release()
        assert_same(back[name], written)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([object()]), "asks for builtins.object|of dtype O8"),
        (np.array(["text"]), "an array of dtype U4; expected floating-point numbers, whole numbers or booleans"),
        (np.array([b"text"]), "an array of dtype S4"),
        (np.array([1j]), "an array of dtype c16"),
        (np.zeros(2, [("a", "f4")]), "an array of dtype V4"),
        (np.array(["2020-01-01"], "M8[D]"), "an array of dtype M8"),
        (np.ma.array([1.0]), "asks for numpy.ma"),
        (slice(1), "asks for builtins.slice"),
        (print, "asks for builtins.print"),
        (1j, "asks for builtins.complex"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_weights_are_not_made_of_is_refused(file, value, message):
    with pytest.raises(UserError, match=rf"{file}: byte \d+: .*({message})"):
        read(file, {"x": value}, protocol=4)


def state(shape: bytes, data: bytes, dtype: bytes = b"f4", order: bytes = b"<", cls: bytes = b"cnumpy\nndarray\n") -> bytes:
    """A pickle of one array, opcode by opcode."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + cls + b"K\x00\x85C\x01b\x87R"
    kind = (
        b"cnumpy\ndtype\nX"
        + len(dtype).to_bytes(4, "little")
        + dtype
        + b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00"
        + order
        + b"NNNK\x00K\x00K\x00tb"
    )
    return b"\x80\x03" + array + b"(K\x01" + shape + kind + b"\x89C" + bytes([len(data)]) + data + b"tb."


def test_the_array_made_by_hand_is_one(file):
    file.write_bytes(state(b"K\x02\x85", np.float32([1, 2]).tobytes()))
    assert_same(read_numpy_pickle(file), np.float32([1, 2]))


FLOAT32 = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (state(b"K\x03\x85", bytes(8)), r"an array \[3\] of float32 in 8 bytes"),
        (state(b"K\x01\x85", bytes(8)), r"an array \[1\] of float32 in 8 bytes"),
        (state(b"J\xfe\xff\xff\xff\x85", bytes(8)), "a shape that is none"),
        (state(b"\x8a\x08" + (2**60).to_bytes(8, "little") + b"\x85", bytes(8)), "a shape that is none"),
        (state(b"\x88\x85", bytes(4)), "a shape that is none"),
        (state(b"K\x02", bytes(8)), "a shape that is none"),
        (state(b"(" + b"K\x01" * 65 + b"t", bytes(4)), "a shape that is none"),
        (state(b"K\x02\x85", bytes(8), dtype=b"zz"), "an array of dtype zz"),
        (state(b"K\x02\x85", bytes(8), order=b"x"), "a dtype whose state is none"),
        (state(b"K\x02\x85", bytes(8), cls=b"cbuiltins\nlist\n"), "an array of class builtins.list"),
        (state(b"K\x02\x85", bytes(8), cls=b"N"), "an array of class a NoneType"),
        (state(b"K\x02\x85", bytes(8))[:-2] + b"b}b.", "sets the state of a LazyTensor"),
        (b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R\x94h\x000}b.", "whose state is none"),
        (b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n)R.", "gives numpy.core.multiarray._reconstruct what it cannot take"),
        (b"\x80\x03cnumpy.core.multiarray\n_reconstruct\nNR.", "calls numpy.core.multiarray._reconstruct, which is no constructor"),
        (b"\x80\x03cnumpy.core.multiarray\nscalar\n" + FLOAT32 + b"C\x03abc\x86R.", "a number of 3 bytes; expected 4"),
        (b"\x80\x03c_codecs\nencode\nX\x03\x00\x00\x00\xe6\x97\xa5X\x06\x00\x00\x00latin1\x86R.", "encode what it cannot take"),
        (b"\x80\x03" + FLOAT32 + b"2K\x03X\x01\x00\x00\x00<\x86b0K\x03X\x01\x00\x00\x00<\x86b.", "gives one value its state twice"),
        (b"", "not a pickle, or cut short"),
    ],
)  # fmt: skip
def test_arrays_that_are_none_are_refused(file, data, message):
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"{file}: .*({message})"):
        read_numpy_pickle(file)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_cut_and_changed_byte_ends_in_values_or_one_line(file, protocol):
    data = pickle.dumps({"model": {"w": np.ones((3, 2), np.float32), "b": np.arange(3)}, "n": np.float32(1)}, protocol=protocol)
    messages = []
    for content in stored_examples.damaged(data, every=3, changed=len(data)):
        file.write_bytes(content)
        with pytest.raises(UserError) if len(content) < len(data) else contextlib.suppress(UserError):
            try:
                read_numpy_pickle(file)
            except UserError as error:
                messages.append(str(error))
                raise
    assert len(messages) >= math.ceil(len(data) / 3)
    assert all(message.startswith(str(file)) and "\n" not in message for message in messages)
