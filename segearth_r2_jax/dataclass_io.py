"""Nested frozen dataclasses from plain dicts (JSON, ConfigDict) and back; `dataclasses.asdict` is the way there."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from segearth_r2_jax.errors import UserError

T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any], name: str = "") -> T:
    """Builds `cls` from a mapping of its fields; nested mappings become the dataclasses that the fields declare, lists tuples.

    Raises:
        UserError: an unknown field, a missing one without a default, or a value of another type; the message names it.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := values.keys() - fields.keys():
        raise UserError(f"{name or cls.__name__}: unknown field {sorted(unknown)[0]!r}; known are {', '.join(fields)}")
    built = {key: _convert(hints[key], value, f"{name}.{key}" if name else key) for key, value in values.items()}
    required = [key for key, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing := [key for key in required if key not in built]:
        raise UserError(f"{name or cls.__name__}: field {missing[0]!r} is missing")
    return cls(**built)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None:
            return None
        (hint,) = [option for option in typing.get_args(hint) if option is not type(None)]
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{name}: expected a table of fields, got {value!r}")
        return from_dict(hint, value, name)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{name}: expected a list, got {value!r}")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = {int: int, float: float, str: str, bool: bool}.get(hint)
    if plain is not None and (not isinstance(value, plain) or (plain is not bool and isinstance(value, bool))):
        raise UserError(f"{name}: expected {plain.__name__}, got {value!r}")
    return value
