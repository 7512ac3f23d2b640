"""Files written by PyTorch itself, in both formats, are read back bit for bit without it; damaged ones end in one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict

import ml_dtypes
import numpy as np
import pytest

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.checkpoints.torch_files.torch_file import read_torch_file
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.restricted_pickle import Inert

torch = pytest.importorskip("torch", reason="torch is not installed: our reading of its files is not checked")

ZIP, LEGACY = True, False
DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint64: np.uint64,
    torch.uint32: np.uint32,
    torch.uint16: np.uint16,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "pytorch_model.bin"


def saved(file, value, new_format=ZIP, **options):
    torch.save(value, file, _use_new_zipfile_serialization=new_format, **options)
    return file


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(read: LazyTensor, written: torch.Tensor) -> None:
    assert isinstance(read, LazyTensor)
    assert (read.shape, read.dtype) == (tuple(written.shape), np.dtype(DTYPES[written.dtype]))
    array = np.asarray(read)
    assert (array.shape, array.dtype) == (read.shape, read.dtype)
    assert array.tobytes() == bits(written)
    assert read.nbytes == array.nbytes


@pytest.mark.parametrize("new_format", [ZIP, LEGACY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_bit_for_bit(file, new_format, dtype):
    random = torch.randint(0, 256, (3, 5, 8), dtype=torch.uint8)
    written = random.view(dtype) if dtype is not torch.bool else random > 127
    assert_same(read_torch_file(saved(file, {"x": written}, new_format))["x"], written)


@pytest.mark.parametrize("new_format", [ZIP, LEGACY])
def test_views_shapes_and_strides(file, new_format):
    base = torch.randn(4, 6, 5)
    written = {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "empty view": base[4:],
        "transposed": base[0].T,
        "permuted": base.permute(2, 0, 1),
        "part": base[1:3, ::2, 1:],
        "last": base[3, 5, 4],
        "diagonal": torch.diagonal(base, dim1=0, dim2=1),
        "repeated": torch.arange(5.0).expand(3, 5),
        "one axis of one": base[:, :1],
        "many axes": torch.randn([1] * 60 + [2, 3]),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    read = read_torch_file(saved(file, written, new_format))
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert_same(read[name], tensor)


@pytest.mark.parametrize("new_format", [ZIP, LEGACY])
def test_tensors_are_views_of_the_file(file, new_format):
    weight = torch.randn(300, 7)
    read = read_torch_file(saved(file, {"a": weight, "tied": weight, "row": weight[3], "b": torch.ones(4)}, new_format))
    arrays = {name: tensor.load() for name, tensor in read.items()}
    for array in arrays.values():
        assert not array.flags.writeable
        assert not array.flags.owndata
    assert np.shares_memory(arrays["a"], arrays["tied"])
    assert np.shares_memory(arrays["a"], arrays["row"])
    assert not np.shares_memory(arrays["a"], arrays["b"])
    read["a"].release()
    assert arrays["a"].tobytes() == bits(weight)


@pytest.mark.parametrize("new_format", [ZIP, LEGACY])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_modules_optimizers_and_what_lies_beside_the_weights(file, new_format, protocol):
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    attributed = torch.arange(3.0)
    attributed.note = "an attribute"
    parameter = torch.nn.Parameter(torch.randn(2))
    parameter.tag = 1
    written = {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": layer[0].weight,
        "attributed": [attributed, parameter],
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list, a=[1]),
        "set": {1, "x"},
        "frozen": frozenset({2}),
        "bytes": [b"", b"ab\xff", b"z" * 70_000],
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "number": np.float32(0.1),
        "random": [torch.get_rng_state(), np.random.RandomState(0).get_state()],
        "none": None,
    }
    if protocol == 2 or protocol == 3:
        del written["frozen"]  # written by a call of frozenset, which weights do not hold
    read = read_torch_file(saved(file, written, new_format, pickle_protocol=protocol))
    assert read.keys() == written.keys()
    for name, tensor in written["model"].items():
        assert_same(read["model"][name], tensor)
    assert_same(read["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert read["optimizer"]["param_groups"] == written["optimizer"]["param_groups"]
    assert_same(read["parameter"], written["parameter"])
    for one, other in zip(read["attributed"], written["attributed"], strict=True):
        assert_same(one, other)
    assert read["size"] == (2, 3)
    assert read["dtype"] == ml_dtypes.bfloat16
    assert read["device"] == "cuda:1"
    for name in ("ordered", "default", "set", "frozen", "none"):
        assert read.get(name) == written.get(name)
    assert [bytes(value) for value in read["bytes"]] == written["bytes"]
    np.testing.assert_array_equal(np.asarray(read["array"]), written["array"])
    assert read["number"] == written["number"]
    assert_same(read["random"][0], written["random"][0])
    np.testing.assert_array_equal(np.asarray(read["random"][1][1]), written["random"][1][1])


def test_a_class_of_the_users_own_is_refused_by_name_or_left_aside(file):
    arguments = argparse.Namespace(rate=0.1, nested={"a": torch.ones(2)})
    saved(file, {"weight": torch.zeros(2), "args": arguments})
    with pytest.raises(UserError, match=r"pytorch_model.bin: data.pkl: byte \d+: asks for argparse.Namespace"):
        read_torch_file(file)
    inert = read_torch_file(file, inert=("argparse",))["args"]
    assert isinstance(inert, Inert)
    assert inert.name == "argparse.Namespace"
    assert inert.state["rate"] == 0.1
    assert_same(inert.state["nested"]["a"], torch.ones(2))


@pytest.mark.parametrize("new_format", [ZIP, LEGACY])
def test_an_object_that_runs_something_among_real_weights(file, new_format, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    saved(file, {"weight": torch.randn(3), "evil": Evil(), "bias": torch.randn(3)}, new_format)
    with pytest.raises(UserError, match=r"pytorch_model.bin: .*asks for (io|_io|__builtin__).open, which is not among"):
        read_torch_file(file, inert=("deepspeed", "argparse"))
    assert not (tmp_path / "canary").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "canary").exists()  # PyTorch obeys it


def test_what_torch_stores_otherwise_than_as_values_is_refused(file):
    for value in (torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()):
        with pytest.raises(UserError, match="asks for torch"):
            read_torch_file(saved(file, [value]))
    with pytest.raises(UserError, match="holds a tensor with metadata; expected the values themselves"):
        read_torch_file(saved(file, [torch._neg_view(torch.ones(2))]))


def rewritten(file, change):
    """The zip of torch.save with `change(name, data) -> data, None to leave it out, or a list of (name, data)` applied to its records."""
    with zipfile.ZipFile(file) as archive:
        records = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records:
            changed = change(name, data)
            for entry in changed if isinstance(changed, list) else [(name, changed)] if changed is not None else []:
                archive.writestr(*entry)
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool], ids=str)
def test_a_file_of_a_big_endian_machine(file, dtype):
    """Not from a real one: the bytes of a file of ours are swapped, and the record that says so is changed."""
    weight = torch.arange(6).reshape(2, 3).to(dtype)
    saved(file, {"w": weight.T})
    size = weight.element_size()

    def swap(name, data):
        if name.endswith("/byteorder"):
            return b"big"
        return np.frombuffer(data, f"u{size}").byteswap().tobytes() if "/data/" in name else data

    assert_same(read_torch_file(rewritten(file, swap))["w"], weight.T)


def test_a_file_without_a_byte_order_is_little_endian(file):
    """Older versions of PyTorch do not write it."""
    saved(file, {"w": torch.arange(3)})
    rewritten(file, lambda name, data: None if name.endswith("/byteorder") or "/." in name else data)
    assert_same(read_torch_file(file)["w"], torch.arange(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: b"middle" if name.endswith("byteorder") else data, "byte order b'middle'; expected little or big"),
        (lambda name, data: None if name.endswith("data/0") else data, "refers to storage 0, which the file does not hold"),
        (lambda name, data: data[:-4] if name.endswith("data/0") else data, "storage 0 has 6 elements of float32; it has 20 bytes"),
        (lambda name, data: data + bytes(4) if name.endswith("data/0") else data, "storage 0 has 6 elements of float32; it has 28 bytes"),
        (lambda name, data: None if name.endswith("data.pkl") else data, "a zip without one NAME/data.pkl"),
        (lambda name, data: [(name, data), (f"other/{name.split('/')[1]}", data)], "a zip without one NAME/data.pkl"),
        (lambda name, data: [(name, data), ("pytorch_model/constants.pkl", b"")][: 1 + ("data.pkl" in name)], "a TorchScript archive"),
        (lambda name, data: [(name, data), (f"../{name}", data)], "points outside of the file"),
        (lambda name, data: [(name, data), (f"/{name}", data)], "points outside of the file"),
        (lambda name, data: [(zipfile.ZipInfo(name), data), (zipfile.ZipInfo(name), data)], "duplicate record"),
        (lambda name, data: [(_deflated(name), data)], "is compressed or encrypted, which torch.save never does"),
        (lambda name, data: data.replace(b"FloatStorage", b"FlockStorage"), "asks for torch.FlockStorage"),
        (lambda name, data: data.replace(b"FloatStorage", b"HalfStorage_"), "asks for torch.HalfStorage_"),
        (lambda name, data: data.replace(b"ctorch\nFloatStorage", b"ctorch\nHalfStorage"), "6 elements of float16; it has 24 bytes"),
        # K\x02K\x03 is the size (2, 3), K\x03K\x01 the stride (3, 1), QK\x00 the offset behind the storage.
        (lambda name, data: data.replace(b"K\x02K\x03\x86", b"K\x03K\x03\x86"), "reaches to element 8 of storage 0, which has 6"),
        (lambda name, data: data.replace(b"K\x03K\x01\x86", b"K\x04K\x01\x86"), "reaches to element 6 of storage 0, which has 6"),
        (lambda name, data: data.replace(b"K\x03K\x01\x86", b"J\xfd\xff\xff\xffK\x01\x86"), "offset or stride is none"),
        (lambda name, data: data.replace(b"K\x02K\x03\x86", b"J\xfd\xff\xff\xffK\x01\x86"), "a shape that is none"),
        (lambda name, data: data.replace(b"K\x03K\x01\x86", b"K\x01\x85"), "offset or stride is none"),
        (lambda name, data: data.replace(b"QK\x00K\x02", b"QK\x01K\x02"), "reaches to element 6 of storage 0, which has 6"),
        (lambda name, data: data.replace(b"QK\x00K\x02", b"QJ\xff\xff\xff\xffK\x02"), "offset or stride is none"),
        (lambda name, data: _repeated(name, data), r"of repeated elements that is larger than the file"),
    ],
)  # fmt: skip
def test_a_zip_that_is_not_what_torch_writes_is_refused(file, change, message):
    saved(file, {"w": torch.arange(6.0).reshape(2, 3)})
    with pytest.warns() if message == "duplicate record" else contextlib.nullcontext():
        rewritten(file, lambda name, data: _without_memo(change, name, data))
    with pytest.raises(UserError, match=f"{file}: .*{message}"):
        read_torch_file(file)


def _without_memo(change, name, data):
    if name.endswith("data.pkl"):
        import pickletools

        data = pickletools.optimize(data)
    return change(name, data)


def _deflated(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _repeated(name: str, data: bytes) -> bytes:
    """A tensor of 2^40 elements that are all the same one."""
    huge = b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"K\x01\x86"
    return data.replace(b"K\x02K\x03\x86", huge).replace(b"K\x03K\x01\x86", b"K\x00K\x01\x86")


def test_records_that_lie_in_each_other_are_refused(file):
    """As in bombs, where many entries share the same bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data/0", b"x" * 100)
    inner = file.read_bytes()
    inner = inner[: inner.index(b"PK\x01\x02")]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"N." + inner)
        archive.writestr("a/data/0", b"x" * 100)
    data = bytearray(file.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = data.index(inner).to_bytes(4, "little")  # where its local header is said to be
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{file}: record a/data/0 lies within record a/data.pkl"):
        read_torch_file(file)


def test_an_encrypted_record_is_refused(file):
    data = bytearray(saved(file, {"w": torch.ones(2)}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag, in the directory of the zip
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"is compressed or encrypted, which torch.save never does"):
        read_torch_file(file)


@pytest.mark.parametrize(
    ("function", "cls", "message"),
    [
        (b"ccollections\nOrderedDict\n", b"ctorch\nTensor\n", "builds a tensor of a class of its own"),
        (b"ctorch\nSize\n", b"ctorch.nn.parameter\nParameter\n", "builds a tensor of a class of its own"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n", "builds a tensor of a class of its own"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cmine\nTensor\n", "asks for mine.Tensor"),
        (b"cos\nsystem\n", b"ctorch\nTensor\n", "asks for os.system"),
    ],
)
def test_a_tensor_with_attributes_is_rebuilt_by_rebuilders_of_tensors_only(file, function, cls, message):
    saved(file, {})
    call = b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + function + cls + b")NtR."
    with pytest.raises(UserError, match=message):
        read_torch_file(rewritten(file, lambda name, data: call if name.endswith("/data.pkl") else data))


def damages(data: bytes, cuts: int) -> list[bytes]:
    """`data` cut at many places, and with single bytes changed."""
    rng = np.random.default_rng(0)
    damaged = [data[:end] for end in sorted({*range(0, min(len(data), 300), 7), *rng.integers(0, len(data), cuts).tolist()})]
    for position in rng.integers(0, len(data), 6 * cuts):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        damaged.append(bytes(changed))
    return damaged


@pytest.mark.parametrize("new_format", [ZIP, LEGACY])
def test_every_cut_and_changed_byte_ends_in_values_or_one_line(file, new_format):
    """A changed byte of a tensor is another value; everything else is found, or harmless: never another kind of error."""
    data = saved(file, OrderedDict(a=torch.randn(3, 4), b=torch.arange(5), c=[np.arange(3), {"x": (1, 2.5)}]), new_format).read_bytes()
    messages = []
    for damaged in damages(data, 30):
        file.write_bytes(damaged)
        refusals = pytest.raises(UserError) if len(damaged) < len(data) else contextlib.suppress(UserError)
        with refusals:
            try:
                _load_all(read_torch_file(file))
            except UserError as error:
                messages.append(str(error))
                raise
    assert all(message.startswith(str(file)) and "\n" not in message for message in messages)
    assert len(messages) > 90


def _load_all(value) -> None:
    if isinstance(value, LazyTensor):
        value.load().tobytes()
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _load_all(item)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "cut short: storage .* ends at byte"),
        (lambda data: data[:-25], "has 0 elements|cut short|expect 6 of float32"),
        (lambda data: data.replace((6).to_bytes(8, "little"), (2**60).to_bytes(8, "little")), "expect 6 of float32"),
        (lambda data: data.replace((6).to_bytes(8, "little"), (5).to_bytes(8, "little")), "has 5 elements; its tensors expect 6"),
        (lambda data: data.replace(b"M\xe9\x03.", b"M\xea\x03."), "version 1002 of torch.save's older format; expected 1001"),
        (lambda data: data.replace(b"\x8a\nl\xfc", b"\x8a\nl\xfd"), "begins with something else than torch.save's number"),
        (lambda data: b"", "not a pickle, or cut short, after byte 0"),
        (lambda data: b"\x80\x02}.", "begins with something else than torch.save's number"),
        (lambda data: b"some text", "expected a file of torch.save"),
    ],
)
def test_an_older_file_that_is_not_whole_is_refused(file, change, message):
    saved(file, {"w": torch.arange(6.0).reshape(2, 3)}, LEGACY)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=f"{file}: .*{message}"):
        read_torch_file(file)


def test_an_older_file_that_lists_other_storages_is_refused(file):
    head = [0x1950A86A20F9469CFC6C, 1001, {}]
    for keys in (["1"], ["1", "1"], "x", [[]], None):
        file.write_bytes(b"".join(pickle.dumps(value, protocol=2) for value in [*head, {}, keys]) + bytes(16))
        with pytest.raises(UserError, match=f"{file}: its list of storages is not that of its tensors"):
            read_torch_file(file)


def test_parts_of_storages_as_before_0_4(file):
    """("storage", type, key, device, size, (key, offset, size)): made by hand, as PyTorch writes no such file any more."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x007X\x03\x00\x00\x00cpuK\x06"

    def tensor(offset: int, size: int) -> bytes:
        part = b"(X\x01\x00\x00\x009K" + bytes([offset]) + b"K" + bytes([size]) + b"ttQ"
        return b"ctorch._utils\n_rebuild_tensor\n(" + storage + part + b"K\x01K\x02\x85K\x01\x85tR"

    head = b"".join(pickle.dumps(value, protocol=2) for value in [0x1950A86A20F9469CFC6C, 1001, {}])
    tail = pickle.dumps(["7"], protocol=2) + (6).to_bytes(8, "little") + np.arange(6, dtype=np.float32).tobytes()
    file.write_bytes(head + b"\x80\x02" + tensor(2, 3) + b"." + tail)
    np.testing.assert_array_equal(np.asarray(read_torch_file(file)), [3, 4])
    for offset, size, message in ((2, 2, "reaches to element 2"), (5, 3, "a part of a storage of 6 elements that is not in it")):
        file.write_bytes(head + b"\x80\x02" + tensor(offset, size) + b"." + tail)
        with pytest.raises(UserError, match=message):
            read_torch_file(file)


def test_a_zip_of_something_else_and_a_file_that_is_not_there(file, tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    file.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=f"{file}: a zip without one NAME/data.pkl; expected a file of torch.save"):
        read_torch_file(file)
    with pytest.raises(UserError, match=r"absent.bin: no such file"):
        read_torch_file(tmp_path / "absent.bin")
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be read"):
        read_torch_file(tmp_path)
