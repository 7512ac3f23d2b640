"""Features are written so that TensorFlow reads them, and read as TensorFlow writes them."""

from __future__ import annotations

import pytest

from data_pipeline.tf_example import decode_example, decode_head, encode_example

FEATURES = {
    "name": ["Zürich".encode()],
    "image/encoded": [bytes(range(256)) * 3],
    "none": [b""],
    "masks": [b"a", b"", b"ccc" * 100],
    "numbers": [0, 1, 127, 128, 300, -1, 2**63 - 1, -(2**63)],
    "empty": [],
}


@pytest.fixture(scope="module")
def messages():
    return pytest.importorskip("tensorflow_datasets.proto").tf_example_pb2


def test_what_is_written_is_read():
    assert decode_example(encode_example(FEATURES)) == FEATURES


def test_protobuf_reads_it(messages):
    example = messages.Example.FromString(encode_example(FEATURES))
    found = example.features.feature
    assert set(found) == set(FEATURES)
    for name in ("name", "image/encoded", "none", "masks"):
        assert list(found[name].bytes_list.value) == FEATURES[name]
    assert list(found["numbers"].int64_list.value) == FEATURES["numbers"]


def test_it_reads_protobuf(messages):
    example = messages.Example()
    for name in ("name", "image/encoded", "none", "masks"):
        example.features.feature[name].bytes_list.value.extend(FEATURES[name])
    example.features.feature["numbers"].int64_list.value.extend(FEATURES["numbers"])
    example.features.feature["empty"].bytes_list.SetInParent()
    assert decode_example(example.SerializeToString()) == FEATURES


def test_integers_that_are_not_packed_are_read():
    # Example{1: Features{1: entry{1: "n", 2: Feature{3: Int64List{1: 5, 1: 300}}}}}
    numbers = b"\x08\x05\x08\xac\x02"
    entry = b"\x0a\x01n\x12" + bytes([len(numbers) + 2]) + b"\x1a" + bytes([len(numbers)]) + numbers
    message = b"\x0a" + bytes([len(entry)]) + entry
    assert decode_example(b"\x0a" + bytes([len(message)]) + message) == {"n": [5, 300]}


def test_equal_features_give_equal_bytes():
    assert encode_example(FEATURES) == encode_example(dict(reversed(FEATURES.items())))


def test_a_message_that_is_cut_off_is_refused():
    data = encode_example({"name": [b"abc"], "numbers": [1, 300]})
    for length in range(1, len(data)):
        with pytest.raises(ValueError, match="Example"):
            decode_example(data[:length])


def test_other_kinds_are_refused(messages):
    example = messages.Example()
    example.features.feature["score"].float_list.value.append(0.5)
    with pytest.raises(ValueError, match="kind 2"):
        decode_example(example.SerializeToString())
    with pytest.raises(TypeError, match="'score'"):
        encode_example({"score": [0.5]})


def test_the_head_of_a_message_holds_the_small_features():
    data = encode_example(FEATURES)
    names = [name for name, _ in sorted(FEATURES.items(), key=lambda item: data.index(item[0].encode()))]
    assert names[-1] == "image/encoded"
    for length in range(len(data) + 1):
        found = decode_head(data[:length], FEATURES)
        assert list(found) == names[: len(found)]
        assert found == {name: FEATURES[name] for name in found}
    assert found == FEATURES
    # All but the image is known from the bytes before it.
    assert list(decode_head(data[: data.index(b"image/encoded")], FEATURES)) == names[:-1]
    assert decode_head(data, ["name", "absent"]) == {"name": FEATURES["name"]}


def test_a_malformed_head_is_refused():
    with pytest.raises(ValueError, match="lacks its name"):
        decode_head(b"\x0a\x7f\x0a\x02\x12\x00", ["name"])
