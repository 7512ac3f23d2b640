"""Pickles that run a command when something obeys them, one for every way there is known to us."""

from __future__ import annotations

import copyreg
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path

_MARK = b"("


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL."""
    return text(module) + text(attribute) + b"\x93"


def extension(code: int) -> bytes:
    """EXT1: a name that some module of the process has registered under a number."""
    return b"\x82" + bytes([code])


def payloads(canary: Path) -> dict[str, tuple[bytes, str]]:
    """What it is called -> (the opcodes that leave one value on the stack, part of what the refusal must say).

    Each makes the file `canary` if it is obeyed by Python's own unpickler (those that `OBEYED` names do so in any process).
    """
    command = f"touch {canary}"
    one = text(command) + b"\x85"  # a tuple of the command
    words = _MARK + text("touch") + text(str(canary)) + b"l\x85"  # a tuple of a list
    python = f"open({str(canary)!r},'w')"
    return {
        "REDUCE of os.system": (name("os", "system") + one + b"R", "os.system"),
        "REDUCE of posix.system": (name("posix", "system") + one + b"R", "posix.system"),
        "REDUCE of builtins.eval": (name("builtins", "eval") + text(python) + b"\x85R", "builtins.eval"),
        "REDUCE of __builtin__.exec, as Python 2": (name("__builtin__", "exec") + text(python) + b"\x85R", "__builtin__.exec"),
        "STACK_GLOBAL of subprocess": (stack_name("subprocess", "check_output") + words + b"R", "subprocess.check_output"),
        "STACK_GLOBAL of a dotted name": (b"\x80\x04" + stack_name("os", "path.os.system") + one + b"R", "os.path.os.system"),
        "INST": (_MARK + text(command) + b"ios\nsystem\n", "os.system"),
        "OBJ": (_MARK + name("os", "system") + text(command) + b"o", "os.system"),
        "NEWOBJ": (name("subprocess", "Popen") + one + b"\x81", "subprocess.Popen"),
        "NEWOBJ_EX": (name("subprocess", "Popen") + one + b"}\x92", "subprocess.Popen"),
        "BUILD with __setstate__": (
            name("argparse", "Namespace") + b")\x81}" + text("__setstate__") + name("os", "system") + b"sb" + text(command) + b"b",
            "argparse.Namespace",
        ),
        "nested getattr": (
            name("builtins", "getattr") + name("builtins", "__import__") + text("os") + b"\x85R" + text("system") + b"\x86R" + one + b"R",
            "builtins.getattr",
        ),
        "__import__": (name("__builtin__", "__import__") + text("os") + b"\x85R", "__builtin__.__import__"),
        "apply": (name("__builtin__", "apply") + name("os", "system") + one + b"\x86R", "__builtin__.apply"),
        "map": (name("builtins", "list") + name("builtins", "map") + name("os", "system") + one + b"\x86R\x85R", "builtins.map"),
        "operator.attrgetter": (name("operator", "attrgetter") + text("system") + b"\x85R", "operator.attrgetter"),
        "functools.partial": (name("functools", "partial") + name("os", "system") + text(command) + b"\x86R)R", "functools.partial"),
        "codecs.decode": (name("codecs", "decode") + text("x") + text("hex") + b"\x86R", "codecs.decode"),
        "_codecs.encode with another codec": (name("_codecs", "encode") + text("x") + text("zip") + b"\x86R", "zip"),
        "pickle within a pickle": (name("_pickle", "loads") + b"C\x01.\x85R", "_pickle.loads"),
        "torch.hub": (name("torch.hub", "load") + text("x") + b"\x85R", "torch.hub.load"),
        "torch.storage._load_from_bytes": (name("torch.storage", "_load_from_bytes") + b"C\x01x\x85R", "torch.storage._load_from_bytes"),
        "numpy's loader": (name("numpy", "load") + one + b"R", "numpy.load"),
        "numpy.testing": (name("numpy.testing._private.utils", "runstring") + text(python) + b"}\x86R", "runstring"),
        "an allowed name, called": (name("numpy", "ndarray") + one + b"R", "numpy.ndarray"),
        "a class made from an allowed name": (name("collections", "OrderedDict") + b")\x81", "collections.OrderedDict"),
        "the module of an allowed name": (name("collections", "_sys.modules"), "collections._sys.modules"),
        "memo: the name under another place": (name("os", "system") + b"q\x050h\x05" + one + b"R", "os.system"),
        "memo: a text becomes a call": (text("os.system") + b"q\x01" + one + b"R", "os.system"),
        "EXT1": (extension(0xF0) + one + b"R", "EXT1"),
        "persistent id": (text(command) + b"Q", "outside of the pickle"),
        "persistent id, protocol 0": (b"P" + command.encode() + b"\n", "outside of the pickle"),
        "buffers outside": (b"\x97", "NEXT_BUFFER"),
        "a name with a line break": (stack_name("os\nfine", "system"), r"os\nfine.system"),
    }


# Those that Python's own unpickler obeys anywhere on Unix, to show that they are no dummies.
OBEYED = (
    "REDUCE of os.system",
    "REDUCE of posix.system",
    "REDUCE of builtins.eval",
    "REDUCE of __builtin__.exec, as Python 2",
    "STACK_GLOBAL of subprocess",
    "STACK_GLOBAL of a dotted name",
    "INST",
    "OBJ",
    "BUILD with __setstate__",
    "nested getattr",
    "map",
    "functools.partial",
    "memo: the name under another place",
    "EXT1",
)


def hidden_in(value: object, payload: bytes, *, protocol: int = 2) -> bytes:
    """A pickle of [value, payload]: all of `value` is fine."""
    data = pickle.dumps(value, protocol=protocol)
    body = b"".join(_without_frames(data))
    return b"\x80" + bytes([max(protocol, 4)]) + b"]" + body + b"a" + payload + b"a."


def _without_frames(data: bytes) -> list[bytes]:
    steps = list(pickletools.genops(data))
    ends = [position for _, _, position in steps[1:]] + [len(data)]
    return [data[at:end] for (opcode, _, at), end in zip(steps, ends, strict=True) if opcode.name not in ("PROTO", "FRAME", "STOP")]


def register_extension() -> Callable[[], None]:
    """Register os.system as the extension of `extension(0xF0)`; gives back what takes that back."""
    import os

    copyreg.add_extension(os.system.__module__, "system", 0xF0)
    return lambda: copyreg.remove_extension(os.system.__module__, "system", 0xF0)
