"""Files that ask to run something: refused in one line that names it, nothing is run, wherever in a file it stands."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pickle_payloads import OBEYED, hidden_in, payloads, register_extension

from data_pipeline.sources.plain_pickle import load_plain_pickle
from segearth_r2_jax.checkpoints.torch_files.numpy_pickle import read_numpy_pickle
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.checkpoints.torch_files.torch_file import read_torch_file
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.restricted_pickle import Inert

NAMES = list(payloads(Path("/")))
HARMLESS = {"weight": [1, 2.5, "x" * 300, None, True], "nested": {"a": (1, 2)}}
LEGACY_HEAD = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]


@pytest.fixture
def canary(tmp_path):
    """The file that a payload makes if it is obeyed."""
    remove = register_extension()
    yield tmp_path / "canary"
    remove()


def zip_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def head(count: int = 3) -> bytes:
    return b"".join(pickle.dumps(value, protocol=2) for value in LEGACY_HEAD[:count])


CARRIERS = {
    "numpy pickle": ("weights.pkl", read_numpy_pickle, lambda data: data),
    "zip": ("pytorch_model.bin", read_torch_file, zip_of),
    "zip, as a state dict": ("pytorch_model.bin", read_state_dict, zip_of),
    "legacy": ("pytorch_model.bin", read_torch_file, lambda data: head() + data),
    "legacy, in place of the keys": ("weights.pt", read_torch_file, lambda data: head() + pickle.dumps({}, protocol=2) + data),
    "legacy, in place of the magic number": ("weights.pth", read_state_dict, lambda data: data),
    "legacy, in place of the machine": ("weights.pth", read_torch_file, lambda data: head(2) + data),
    "plain": ("refs.p", load_plain_pickle, lambda data: data),
}


@pytest.mark.parametrize("name", OBEYED)
def test_python_obeys_the_payloads(canary, name):
    """They are no dummies."""
    with contextlib.suppress(Exception):
        pickle.loads(payloads(canary)[name][0] + b".")
    assert canary.exists()


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_payload_is_refused_by_name(tmp_path, canary, carrier, name):
    file_name, read, wrap = CARRIERS[carrier]
    payload, asked_for = payloads(canary)[name]
    file = tmp_path / file_name
    for data in (payload + b".", hidden_in(HARMLESS, payload), hidden_in(HARMLESS, payload, protocol=4)):
        file.write_bytes(wrap(data))
        with pytest.raises(UserError) as refusal:
            read(file)
        message = str(refusal.value)
        assert str(file) in message
        assert "\n" not in message
        assert len(message) < 700
        # Where plain values are expected, the first step that is more is refused, which may come before the name.
        assert asked_for in message or "asks for more than plain values" in message
        assert asked_for in message or carrier == "plain" or carrier.startswith("legacy, in place")
    assert not canary.exists()


def test_a_payload_behind_real_arrays_is_refused(tmp_path, canary):
    payload, asked_for = payloads(canary)["REDUCE of os.system"]
    arrays = {"model": {f"layer.{number}": np.full((3, 5), number) for number in range(20)}}
    for protocol in range(2, 6):
        (tmp_path / "w.pkl").write_bytes(hidden_in(arrays, payload, protocol=protocol))
        with pytest.raises(UserError, match=rf"w.pkl: byte \d+: asks for {asked_for}"):
            read_numpy_pickle(tmp_path / "w.pkl")
    assert not canary.exists()


@pytest.mark.parametrize("name", NAMES)
def test_inert_modules_do_not_open_any_other(tmp_path, canary, name):
    """A caller who wants the objects of some modules to be left aside still refuses every other name."""
    payload, _ = payloads(canary)[name]
    (tmp_path / "w.pt").write_bytes(zip_of(payload + b"."))
    with pytest.raises(UserError):
        read_torch_file(tmp_path / "w.pt", inert=("deepspeed", "argparse"))
    assert not canary.exists()


def test_objects_of_inert_modules_are_never_looked_for(tmp_path, canary):
    """A module of that name that would run something when it is imported is not imported."""
    import sys

    folder = tmp_path / "path" / "deepspeed"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f"open({str(canary)!r}, 'w')")
    sys.path.insert(0, str(folder.parent))
    try:
        data = b"\x80\x02}X\x06\x00\x00\x00scalercdeepspeed.fp16\nLossScaler\n)\x81}X\x01\x00\x00\x00aK\x01sbs."
        (tmp_path / "w.pt").write_bytes(zip_of(data))
        scaler = read_torch_file(tmp_path / "w.pt", inert=("deepspeed",))["scaler"]
    finally:
        sys.path.remove(str(folder.parent))
    assert isinstance(scaler, Inert)
    assert (scaler.name, scaler.arguments, scaler.state) == ("deepspeed.fp16.LossScaler", (), {"a": 1})
    assert "deepspeed" not in sys.modules
    assert not canary.exists()


@pytest.mark.parametrize("module", ["deepspeedx", "deep", "os", "notdeepspeed.x", ""])
def test_a_module_is_inert_by_its_whole_name_only(tmp_path, module):
    (tmp_path / "w.pt").write_bytes(zip_of(f"c{module}\nX\n)R.".encode()))
    with pytest.raises(UserError, match="asks for"):
        read_torch_file(tmp_path / "w.pt", inert=("deepspeed",))


def repeated(value: bytes, constructor: bytes, arguments: bytes) -> bytes:
    """`constructor` called on one value (in the memo at 0) again and again."""
    return b"\x80\x04" + value + b"\x94c" + constructor + b"\n\x94" + (b"h\x01" + arguments + b"R0") * 500 + b"N."


def from_buffer(data: bytes, *shape: int) -> bytes:
    """numpy's `_frombuffer` of float32 with a shape of one or two sizes."""
    head = b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(C" + bytes([len(data)]) + data
    sizes = b"".join(b"\x8a\x08" + size.to_bytes(8, "little") for size in shape)
    return head + b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R" + sizes + [b"\x85", b"\x86"][len(shape) - 1] + b"X\x01\x00\x00\x00CtR."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (repeated(b"(" + b"K\x01" * 1000 + b"l", b"builtins\nset", b"h\x00\x85"), "copies more than the file holds"),
        (repeated(b"X\xe8\x03\x00\x00" + b"a" * 1000, b"_codecs\nencode", b"h\x00X\x06\x00\x00\x00latin1\x86"), "copies more"),
        (repeated(b"(" + b"]K\x01aK\x02a" * 300 + b"l", b"collections\nOrderedDict", b"h\x00\x85"), "copies more than the file holds"),
        (from_buffer(b"abcd", 2**50), "a shape that is none"),
        (from_buffer(b"abcd", 2**40), "in 4 bytes"),
        (from_buffer(b"", 0, 2**62), "a shape that is none"),
        (b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.", "claimed"),  # BINBYTES8
        (b"\x80\x05\x96" + (2**63 - 1).to_bytes(8, "little") + b"x.", "claimed"),  # BYTEARRAY8
        (b"\x80\x04B\xff\xff\xff\xffx.", "claimed"),  # BINBYTES
        (b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"x.", "not a pickle, or cut short"),  # BINUNICODE8
    ],
)
def test_what_would_take_all_memory_takes_none(tmp_path, data, message):
    (tmp_path / "w.pkl").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_numpy_pickle(tmp_path / "w.pkl")


def test_deep_nesting_and_a_container_within_itself_are_only_values(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"]" * 100_000 + b"a" * 99_999 + b".")
    assert isinstance(read_numpy_pickle(tmp_path / "w.pkl"), list)
    (tmp_path / "w.pkl").write_bytes(b"]q\x00h\x00a.")
    value = read_numpy_pickle(tmp_path / "w.pkl")
    assert value[0] is value
