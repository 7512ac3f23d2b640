"""Plain values come out of a pickle of any protocol; nothing that a pickle asks to run is ever run."""

from __future__ import annotations

import contextlib
import pickle
import struct

import numpy as np
import pytest

from data_pipeline.sources.plain_pickle import load_plain_pickle
from segearth_r2_jax.errors import UserError

SHARED = ["shared", {"x": 1}]
PLAIN = [
    {"ref_id": 7, "text": "ein Schiff — 船", "none": None, "yes": True, "no": False, "float": -1.5e300, "empty": [[], {}, ()]},
    {1: (1,), 2: (1, 2), 3: (1, 2, 3), 4: (1, 2, 3, 4)},
    [0, 255, 65535, -1, 2**31, -(2**63), 2**63 - 1, "x" * 300, "x" * 70000],
    [SHARED, SHARED],
    list(range(3000)),
    {str(n): n for n in range(3000)},
]


def write(tmp_path, data: bytes):
    file = tmp_path / "refs(unc).p"
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("pickler", [pickle.dumps, pickle._dumps])
def test_plain_values_of_every_protocol(tmp_path, protocol, pickler):
    assert load_plain_pickle(write(tmp_path, pickler(PLAIN, protocol=protocol))) == PLAIN


def test_texts_of_python_2(tmp_path):
    """What Python 2 wrote for b'a\\n' (protocol 0) and b'abc' (protocols 1 and 2)."""
    assert load_plain_pickle(write(tmp_path, b"(lp0\nS'a\\n'\np1\naU\x03abcq\x02aI01\na.")) == ["a\n", "abc", True]


class Calls:
    called = 0

    def __init__(self, function, *arguments):
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


def count_call():
    Calls.called += 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [Calls(count_call), Calls(eval, "__import__('os').abort()"), np.int64(3), {1, 2}, b"bytes", bytearray(b"x"), 1j, print, object()],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_and_not_run(tmp_path, protocol, value):
    file = write(tmp_path, pickle.dumps([{"ref_id": value}], protocol=protocol))
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: byte \d+: holds [A-Z_0-9]+, which asks for more than plain values"):
        load_plain_pickle(file)
    assert Calls.called == 0


def test_what_would_take_all_memory_takes_none(tmp_path):
    """Places in the memo and lengths are numbers that a pickle may choose freely."""
    far = b"\x80\x02]" + b"r" + struct.pack("<I", 2**32 - 1) + b"."
    assert load_plain_pickle(write(tmp_path, far)) == []
    for opcode in (b"\x8d", b"\x8e", b"\x96"):  # BINUNICODE8, BINBYTES8, BYTEARRAY8
        with pytest.raises(UserError, match=r"refs\(unc\)\.p: "):
            load_plain_pickle(write(tmp_path, b"\x80\x05" + opcode + struct.pack("<Q", 2**62) + b"x."))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a pickle, or cut short, after byte 0"),
        (b"[{}]", "not a pickle, or cut short"),
        (b"\x80\x04.", "does not end with one value"),
        (b"\x80\x04]].", "does not end with one value"),
        (b"(.", "does not end with one value"),
        (b"]K\x01K\x02s.", "sets items of something that is no dict"),
        (b"}K\x01a.", "appends to something that is no list"),
        (b"}(K\x01u.", "sets items of something that is no dict"),
        (b"}]K\x01s.", "neither texts nor whole numbers"),
        (b"h\x05.", "refers to a value that it does not hold"),
        (b"a.", "takes a value where there is none"),
        (b"(q\x00.", "takes a value where there is none"),
        (b"e.", "takes a value where there is none"),
        (b"K\x01(\x86.", "takes a value where there is none"),
        (b"I" + b"9" * 30 + b"\n.", "more than 64 bits"),
        (b"I" + b"9" * 5000 + b"\n.", "not a pickle"),
        (b"Fzwei\n.", "not a pickle"),
        (b"X\x02\x00\x00\x00\xff\xff.", "not a pickle"),
        (b"]" + b"]a" * 3, "not a pickle, or cut short, after byte 6"),
    ],
)
def test_damage(tmp_path, data, message):
    with pytest.raises(UserError, match=rf"refs\(unc\)\.p: .*{message}"):
        load_plain_pickle(write(tmp_path, data))


def test_every_cut_and_every_changed_byte_ends_in_a_value_or_one_line(tmp_path):
    data = pickle.dumps(PLAIN[0], protocol=2)
    rng = np.random.default_rng(0)
    damaged = [data[:end] for end in range(len(data))]
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        damaged.append(bytes(changed))
    messages = []
    for content in damaged:
        with contextlib.suppress(_Read):
            messages.append(_message(write(tmp_path, content)))
    assert len(messages) >= len(data)  # Every cut is found; a changed byte may give another value.
    assert all("refs(unc).p: " in message and "\n" not in message for message in messages)


class _Read(Exception):
    """The file was read without an error."""


def _message(file) -> str:
    try:
        load_plain_pickle(file)
    except UserError as error:
        return str(error)
    raise _Read


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_plain_pickle(tmp_path / "absent.p")
