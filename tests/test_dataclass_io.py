import dataclasses

import pytest

from segearth_r2_jax.dataclass_io import from_dict
from segearth_r2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    depths: tuple[int, ...] = ()
    extra: Inner | None = None
    name: str = "x"


def test_round_trip_through_plain_values():
    outer = Outer(Inner(3, 0.5), (1, 2), Inner(4))
    values = dataclasses.asdict(outer)
    values["depths"] = list(values["depths"])  # as JSON gives it back
    assert from_dict(Outer, values) == outer
    assert from_dict(Outer, {"inner": {"size": 1}, "extra": None}) == Outer(Inner(1))


def test_an_integer_is_a_float_but_not_the_other_way():
    assert from_dict(Inner, {"size": 1, "scale": 2}).scale == 2.0
    with pytest.raises(UserError, match=r"size: expected int, got 1\.5"):
        from_dict(Inner, {"size": 1.5})
    with pytest.raises(UserError, match="size: expected int, got True"):
        from_dict(Inner, {"size": True})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"size": 1, "typo": 2}}, "inner: unknown field 'typo'"),
        ({"inner": {}}, "inner: field 'size' is missing"),
        ({"inner": 3}, "inner: expected a table"),
        ({"inner": {"size": 1}, "depths": 4}, "depths: expected a list"),
        ({"inner": {"size": 1}, "name": 4}, "name: expected str"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(Outer, values)
