"""The wire form of `tf.train.Example`, for features that are lists of bytes or of integers.

TensorFlow reads what is written here (`tf.io.parse_single_example`), and the reverse. Sixty lines stand in for a dependency:
tensorflow_datasets' serializer does the same without TensorFlow, but through internal modules and half a second of imports in every
worker process. The message is three nested maps of length-delimited fields:

    Example  { 1: Features }              Features { 1: repeated entry { 1: name, 2: Feature } }
    Feature  { 1: BytesList | 3: Int64List }          each list { 1: repeated values, integers packed }
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

_VARINT, _DELIMITED = 0, 2
_BYTES_LIST, _INT64_LIST = 1, 3


class IncompleteNumber(ValueError):
    """The message ends within a number."""


def encode_example(features: Mapping[str, Sequence[bytes] | Sequence[int]]) -> bytes:
    """Serializes `features`, the smallest first, so that the head of a message tells everything but the image (see `decode_head`).

    Equal features give equal bytes.
    """
    entries = []
    for name, values in features.items():
        if all(isinstance(value, bytes) for value in values):
            feature = _field(_BYTES_LIST, b"".join(_field(1, value) for value in values))
        elif all(isinstance(value, int) for value in values):
            feature = _field(_INT64_LIST, _field(1, b"".join(_varint(value) for value in values)))
        else:
            raise TypeError(f"the values of feature {name!r} must be all bytes or all int")
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(sorted(entries, key=lambda entry: (len(entry), entry))))


def decode_example(data: bytes) -> dict[str, list[bytes] | list[int]]:
    """The features of a serialized Example; ValueError if it is malformed or has a list of another kind."""
    return dict(_feature(message) for _, entries in _fields(memoryview(data)) for _, message in _fields(entries))


def decode_head(head: bytes, names: Collection[str]) -> dict[str, list[bytes] | list[int]]:
    """Those of the features `names` that are whole within the first bytes of a serialized Example.

    Reading ends when all are found. Raises ValueError if the message is malformed before that.
    """
    data = memoryview(head)
    wanted = {name.encode(): name for name in names}
    features: dict[str, list[bytes] | list[int]] = {}
    at = 0
    try:
        _, at = _read_varint(data, at)  # The tag and the length of the one field that holds all others.
        _, at = _read_varint(data, at)
        while at < len(data) and len(features) < len(wanted):
            _, start = _read_varint(data, at)
            length, start = _read_varint(data, start)
            at = start + length
            if at > len(data):
                break
            key, value = _parts(data[start:at])
            if bytes(key) in wanted:
                features[wanted[bytes(key)]] = _values(value)
    except IncompleteNumber:
        pass  # The head ends between two features.
    return features


def _feature(entry: memoryview) -> tuple[str, list[bytes] | list[int]]:
    """Name and values of one feature."""
    key, value = _parts(entry)
    return bytes(key).decode(), _values(value)


def _parts(entry: memoryview) -> tuple[memoryview, memoryview]:
    parts = dict(_fields(entry))
    if 1 not in parts or 2 not in parts:
        raise ValueError("an entry of the Example lacks its name or its value")
    return parts[1], parts[2]


def _values(feature: memoryview) -> list[bytes] | list[int]:
    for kind, message in _fields(feature):
        if kind == _BYTES_LIST:
            return [bytes(value) for _, value in _fields(message)]
        if kind == _INT64_LIST:
            return [number for _, packed in _fields(message) for number in _numbers(packed)]
        raise ValueError(f"a feature holds a list of kind {kind}; expected bytes or integers")
    return []


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _DELIMITED) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # Negative numbers are written in two's complement.
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:  # Nearly all numbers are this small.
        return data[at], at + 1
    value = 0
    for group in range(10):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * group)
        if byte < 0x80:
            return value, at
    raise IncompleteNumber("a number in the Example has no end")


def _numbers(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        yield value - (1 << 64) if value >= 1 << 63 else value


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field; an integer that is not packed comes as the bytes of its varint."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        start = at
        if tag & 7 == _VARINT:
            _, at = _read_varint(message, at)
        elif tag & 7 == _DELIMITED:
            length, start = _read_varint(message, at)
            at = start + length
        else:
            raise ValueError(f"a field of the Example has wire type {tag & 7}")
        if at > len(message):
            raise ValueError("a field of the Example is longer than the message")
        yield tag >> 3, message[start:at]
