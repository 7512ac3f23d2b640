"""Reads files of `torch.save` without PyTorch: the zip format (since PyTorch 1.6) and the one before it.

The zip holds, not compressed, `NAME/data.pkl` and every storage as `NAME/data/KEY`; `NAME/byteorder` says "little" or "big". The older
format is a row of pickles (a magic number, a version, facts about the machine, the value, the keys of the storages) and then for every
key the number of elements, 8 bytes, and the elements, which PyTorch writes little-endian on any machine. torch/serialization.py and
caffe2/serialize/inline_container.cc are the definition. The checksums of the zip are not computed: that would read the whole file.
"""

from __future__ import annotations

import functools
import struct
import zipfile
from pathlib import Path
from typing import Any

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import MappedFile
from segearth_r2_jax.checkpoints.torch_files.tensor_pickle import Storage, TensorPickle
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.restricted_pickle import Refused, load_pickle, shown

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1


def read_torch_file(path: str | Path, *, inert: tuple[str, ...] = ()) -> Any:
    """The value in a file of `torch.save`: dicts, lists, texts, numbers; tensors and arrays are `LazyTensor`s without a name.

    Tensors are views of the mapped file, strided as they were saved; tensors that shared memory do so again. Parameters come as plain
    tensors, `torch.Size` as tuples, dtypes as those of numpy, devices as texts. Containers may hold themselves, as the pickle says.

    inert: modules, such as "deepspeed", whose objects are not needed: they come as `restricted_pickle.Inert`.

    Raises:
        UserError: no such file; not a whole file of `torch.save`; it asks for anything but tensors, arrays and containers; a tensor
            lies outside of its storage, a storage outside of the file.
    """
    file = MappedFile(path)
    if file.bytes(0, 4) == b"PK\x03\x04":
        return _read_zip(file, inert)
    return _read_legacy(file, inert)


def _read_zip(file: MappedFile, inert: tuple[str, ...]) -> Any:
    records = _records(file)
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise UserError(f"{file.path}: a zip without one NAME/data.pkl; expected a file of torch.save")
    root = roots[0]
    if f"{root}/constants.pkl" in records:
        raise UserError(f"{file.path}: a TorchScript archive; expected a file of torch.save")
    byte_order = b"little"
    if f"{root}/byteorder" in records:
        begin, end = records[f"{root}/byteorder"]
        byte_order = file.bytes(begin, min(end, begin + 16))
    if byte_order not in (b"little", b"big"):
        raise UserError(f"{file.path}: byte order {byte_order!r}; expected little or big")

    def place(storage: Storage) -> int:
        begin, end = records.get(f"{root}/data/{storage.key}", (0, -1))
        if end < begin:
            raise Refused(f"refers to storage {shown(storage.key)}, which the file does not hold")
        if (end - begin) // storage.dtype.itemsize != storage.whole_count:
            raise Refused(
                f"says that storage {shown(storage.key)} has {storage.whole_count} elements of {storage.dtype.name}; "
                f"it has {end - begin:,} bytes"
            )
        return begin

    begin, end = records[f"{root}/data.pkl"]
    machine = TensorPickle(file, inert, place, big_endian=byte_order == b"big")
    value, _ = machine.load(file.bytes(begin, end), f"{file.path}: data.pkl")
    return value


def _records(file: MappedFile) -> dict[str, tuple[int, int]]:
    """The records of a zip: name -> first byte, and the byte after the last one."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise UserError(f"{file.path}: not a whole zip file ({error}); expected one that torch.save wrote") from None
    records: dict[str, tuple[int, int]] = {}
    done, before = 0, ""
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = shown(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise UserError(f"{file.path}: record {name} is compressed or encrypted, which torch.save never does")
        if entry.filename.startswith("/") or "\\" in entry.filename or ".." in entry.filename.split("/"):
            raise UserError(f"{file.path}: record {name} points outside of the file")
        if entry.filename in records:
            raise UserError(f"{file.path}: duplicate record {name}")
        if entry.header_offset < done:
            raise UserError(f"{file.path}: record {name} lies within record {before}")
        begin = _first_byte(file, entry.header_offset)
        done, before = begin + entry.file_size, name
        if begin == 0 or entry.compress_size != entry.file_size or done > file.size:
            raise UserError(f"{file.path}: record {name} claims {entry.file_size:,} bytes that are not there")
        records[entry.filename] = (begin, done)
    return records


def _first_byte(file: MappedFile, header: int) -> int:
    """The first byte of the record whose local header is at byte `header`; 0 if there is none."""
    head = file.bytes(header, header + _LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size:
        return 0
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(head)
    return header + _LOCAL_HEADER.size + name_length + extra_length if signature == b"PK\x03\x04" else 0


def _read_legacy(file: MappedFile, inert: tuple[str, ...]) -> Any:
    name = str(file.path)
    data = file.mmap or b""
    plain = functools.partial(load_pickle, data, name)
    expected = "expected a file of torch.save, in its zip format or the one before it"
    try:
        magic, position = plain(integer_bits=96)
    except UserError as error:
        raise UserError(f"{error}; {expected}") from None
    if magic != _MAGIC_NUMBER:
        raise UserError(f"{file.path}: a pickle that begins with something else than torch.save's number; {expected}")
    version, position = plain(start=position)
    if version != _PROTOCOL_VERSION:
        raise UserError(f"{file.path}: version {version!r:.40} of torch.save's older format; expected {_PROTOCOL_VERSION}")
    _, position = plain(start=position)
    machine = TensorPickle(file, inert)
    value, position = machine.load(data, name, position)
    keys, position = plain(start=position)
    _place_storages(file, machine.storages, keys, position)
    return value


def _place_storages(file: MappedFile, storages: list[Storage], keys: Any, position: int) -> None:
    """Give each of the `storages` its first byte; those of `keys` lie one behind the other from byte `position` on."""
    by_key: dict[str, list[Storage]] = {}
    for storage in storages:
        by_key.setdefault(storage.key, []).append(storage)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(by_key):
        raise UserError(f"{file.path}: its list of storages is not that of its tensors")
    for key in keys:
        count = int.from_bytes(file.bytes(position, position + 8), "little")
        position += 8
        for storage in by_key[key]:
            if storage.dtype != by_key[key][0].dtype or storage.whole_count != count:
                expected = f"{storage.whole_count} of {storage.dtype.name}"
                raise UserError(f"{file.path}: storage {shown(key)} has {count} elements; its tensors expect {expected}")
            storage.start = position
        position += count * by_key[key][0].dtype.itemsize
        if position > file.size:
            raise UserError(f"{file.path}: cut short: storage {shown(key)} ends at byte {position:,}, the file has {file.size:,}")
