"""JSONL files are read line by line, and a wrong line costs that line only; boxes come back on whole pixels of the image."""

from __future__ import annotations

import pytest

from data_pipeline.annotation import Box, Rejection, read_json_lines, read_lines
from segearth_r2_jax.errors import UserError


def test_lines_of_a_jsonl_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[2]\n{"a": \n{"a": "\xff"}\n' + b"[" * 100000 + b'\n{"a": 3}')
    rows = list(read_json_lines(file))
    assert [name.removeprefix(f"{file}: ") for name, _ in rows] == ["line 1", "line 4", "line 5", "line 6", "line 7", "line 8"]
    assert [row for _, row in rows if not isinstance(row, Rejection)] == [{"a": 1}, {"a": 3}]
    reasons = [row.reason for _, row in rows if isinstance(row, Rejection)]
    assert reasons[0] == "expected an object of named fields, it is list"
    assert all(reason.startswith("not JSON (") for reason in reasons[1:])
    with pytest.raises(UserError, match=r"absent\.jsonl: cannot be read"):
        list(read_lines(tmp_path / "absent.jsonl"))


@pytest.mark.parametrize(
    ("corners", "long_side", "expected"),
    [
        ((10, 20, 30, 40), None, (10, 20, 30, 40)),
        ((10.2, 20.9, 30.1, 40), None, (10, 20, 31, 40)),
        ((256, 0, 512, 128), 1024, (500, 0, 1000, 250)),
        ((0, 0, 1024, 512), 1024, (0, 0, 2000, 1000)),
    ],
)
def test_boxes(corners, long_side, expected):
    assert Box(corners, long_side).in_pixels(1000, 2000, "row") == expected


@pytest.mark.parametrize("corners", [(5, 5, 5, 9), (-1, 0, 4, 4), (0, 0, 2100, 4), (0, float("nan"), 4, 4), (9, 0, 4, 4)])
def test_a_box_outside_of_its_image(corners):
    with pytest.raises(UserError, match=r"^row 3: the box .* does not lie in its image of 2000 x 1000 pixels"):
        Box(corners).in_pixels(1000, 2000, "row 3")
