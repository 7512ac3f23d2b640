"""The machine behind all readers of pickles: what a table allows is built by our own functions, and nothing else is."""

from __future__ import annotations

import collections
import pickle

import pytest

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.restricted_pickle import LEFT_IN_PLACE, Constructor, Inert, InertClass, Named, Refused, Unfinished, load_pickle

ORDERED = {("collections", "OrderedDict"): Constructor("collections.OrderedDict", collections.OrderedDict)}


def load(data, constructors=None, **options):
    return load_pickle(data, "w.pkl", constructors=constructors, **options)[0]


def test_pickles_one_behind_the_other():
    data = b"xyz" + pickle.dumps([1]) + pickle.dumps("two")
    first, position = load_pickle(data, "w.pkl", start=3)
    assert first == [1]
    assert load_pickle(data, "w.pkl", start=position) == ("two", len(data))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_name_stands_for_what_the_table_says(protocol):
    value = collections.OrderedDict(b=1, a=[None, 2.5])
    value.note = "attributes of an OrderedDict are left out"
    read = load(pickle.dumps(value, protocol=protocol), ORDERED)
    assert read == value
    assert not hasattr(read, "note")
    table = {("collections", "OrderedDict"): Constructor("ours", lambda *arguments: "ours")}
    assert load(pickle.dumps([collections.OrderedDict()], protocol=protocol), table) == ["ours"]


def test_bytes_sets_and_large_bytes_in_place():
    large = bytes(range(256)) * (LEFT_IN_PLACE // 256)
    data = pickle.dumps([b"small", large, bytearray(large), {1, "a"}, frozenset({2})], protocol=5)
    small, in_place, array, items, frozen = load(data, {})
    assert (small, items, frozen) == (b"small", {1, "a"}, frozenset({2}))
    for value in (in_place, array):
        assert isinstance(value, memoryview)
        assert value.readonly
        assert value.obj is data
        assert bytes(value) == large


def test_persistent_ids_go_to_the_caller():
    assert load(b"(X\x01\x00\x00\x00aQP7\nl.", {}, persistent=lambda identity: f"value {identity}") == ["value a", "value 7"]

    def refuse(identity):
        raise Refused("refers to something unknown")

    with pytest.raises(UserError, match=r"w.pkl: byte 2: refers to something unknown"):
        load(b"K\x01Q.", {}, persistent=refuse)


def test_an_unfinished_value_is_whole_wherever_the_pickle_refers_to_it():
    class Waiting(Unfinished):
        def finish(self, state):
            if state is None:
                raise Refused("holds no state")
            return ("whole", state)

    table = {("m", "waiting"): Constructor("m.waiting", Waiting)}
    data = b"(cm\nwaiting\n)R\x94K\x07bh\x00h\x00t."
    assert load(data, table) == (("whole", 7),) * 3
    with pytest.raises(UserError, match="holds no state"):
        load(b"cm\nwaiting\n)RNb.", table)
    with pytest.raises(UserError, match="sets the state of a tuple, which has none"):
        load(b"cm\nwaiting\n)RK\x01bK\x02b.", table)


@pytest.mark.parametrize(
    ("data", "arguments", "keywords"),
    [
        (b"cm.sub\nThing\n(K\x01K\x02tR.", (1, 2), {}),
        (b"cm.sub\nThing\n(K\x01K\x02t\x81.", (1, 2), {}),
        (b"X\x05\x00\x00\x00m.subX\x05\x00\x00\x00Thing\x93)}X\x01\x00\x00\x00aK\x03s\x92.", (), {"a": 3}),
        (b"(K\x01im.sub\nThing\n.", (1,), {}),
        (b"(cm.sub\nThing\nK\x01o.", (1,), {}),
    ],
    ids=["REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"],
)
def test_objects_of_inert_modules_by_every_opcode(data, arguments, keywords):
    value = load(data, {}, inert=("m",))
    assert isinstance(value, Inert)
    assert (value.name, value.arguments, value.keywords, value.state) == ("m.sub.Thing", arguments, keywords, None)


def test_what_is_added_to_an_inert_object_is_left_out():
    data = b"cm\nT\n)R}K\x01K\x02sbK\x05a(K\x06eK\x01K\x02s(K\x03K\x04u(K\x07\x90."
    value = load(data, {}, inert=("m",))
    assert value.state == {1: 2}
    assert load(b"cm\nT\n.", {}, inert=("m",)) == InertClass("m.T")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cm\nfails\n)R.", "gives m.fails what it cannot take"),
        (b"cm\nfails\nK\x01R.", "calls m.fails, which is no constructor"),
        (b"cm\nname\n)R.", "calls m.name, which is no constructor"),
        (b"cm\nvalue\n)R.", "calls a int, which is no constructor"),
        (b"cm\nname\n)\x81.", "makes an object of m.name, which is no class"),
        (b"cm\nfails\n)\x81.", "makes an object of m.fails, which is no class"),
        (b"cm.name\nx\n.", "asks for m.name.x"),
        (b"cm\nname.__class__\n.", "asks for m.name.__class__"),
        (b"K\x01K\x02\x93.", "names something by values that are no texts"),
        (b"X\x01\x00\x00\x00mK\x02\x93.", "names something by values that are no texts"),
        (b"(o.", "makes an object of a NoneType"),
        (b"]K\x01b.", "sets the state of a list, which has none"),
        (b"}K\x01b.", "sets the state of a dict, which has none"),
        (b"(]\x91.", "a set whose keys are neither"),
        (b"\x8f(]\x90.", "a set whose keys are neither"),
        (b"](K\x01\x90.", "adds items to something that is no set"),
        (b"}K\x01K\x02\x86K\x03s.", "a dict whose keys are neither"),
        (b"\x82\x01.", r"holds EXT1"),
        (b"\x97.", r"holds NEXT_BUFFER"),
        (b"K\x01Q.", "refers to a value outside of the pickle"),
        (b"(0(1(.", "does not end with one value"),
    ],
)
def test_refusals(data, message):
    def fails(value):
        raise AssertionError("never called without a value")

    table = {("m", "fails"): Constructor("m.fails", fails), ("m", "name"): Named("m.name"), ("m", "value"): 3}
    with pytest.raises(UserError, match=rf"w.pkl: byte \d+: .*{message}"):
        load(data, table)


def test_marks_can_be_taken_back():
    assert load(b"K\x01(0(K\x02K\x0312\x86.") == (1, 1)
