import time

import numpy as np
import pytest

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster import rle

coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is the oracle of the RLE tests")
# pycocotools 2.0.11 uses a form of __array__ that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def _masks():
    rng = np.random.default_rng(0)
    yield "one pixel off", np.zeros((1, 1), np.uint8)
    yield "one pixel on", np.ones((1, 1), np.uint8)
    yield "one row", np.array([[1, 0, 0, 1, 1]], np.uint8)
    yield "one column", np.array([[0], [1], [0]], np.uint8)
    yield "all on", np.ones((37, 53), np.uint8)
    yield "all off", np.zeros((37, 53), np.uint8)
    for density in (0.001, 0.1, 0.5, 0.999):
        yield f"noise {density}", (rng.random((61, 47)) < density).astype(np.uint8)
    large = np.zeros((3000, 2000), np.uint8)
    large[100:2900, 700:1500] = 1
    yield "runs that need several characters", large
    stripes = np.zeros((2000, 9), np.uint8)
    stripes[3:1900, ::2] = 1
    stripes[1000, :] = 1
    yield "large negative differences", stripes


@pytest.mark.parametrize(("name", "mask"), list(_masks()))
def test_same_as_pycocotools_both_ways(name, mask):
    expected = coco.encode(np.asfortranarray(mask))
    encoded = rle.encode(mask)
    assert encoded["counts"].encode() == expected["counts"], name
    assert encoded["size"] == list(expected["size"])
    decoded = rle.decode({"size": list(expected["size"]), "counts": expected["counts"].decode()})
    assert decoded.dtype == np.uint8
    assert decoded.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(decoded, mask)
    np.testing.assert_array_equal(coco.decode({"size": encoded["size"], "counts": encoded["counts"].encode()}), mask)


@pytest.mark.parametrize(("name", "mask"), list(_masks()))
def test_the_box_holds_the_whole_foreground_and_no_more(name, mask):
    top, left, pixels = rle.decode_box(rle.encode(mask))
    columns, rows = pixels.shape
    restored = np.zeros_like(mask)
    restored[top : top + rows, left : left + columns] = pixels.T
    np.testing.assert_array_equal(restored, mask)
    on = np.argwhere(mask)
    if not len(on):
        assert (columns, rows) == (0, 0)
        return
    assert (left, left + columns) == (on[:, 1].min(), on[:, 1].max() + 1)
    # A run that goes on in the next column touches its first and last rows.
    assert (top, top + rows) == (on[:, 0].min(), on[:, 0].max() + 1)


def test_runs_of_length_zero_do_not_widen_the_box():
    # 4 x 3: nothing at pixel 0, two pixels from the sixth on.
    top, left, pixels = rle.decode_box({"size": [4, 3], "counts": [0, 0, 5, 2, 5, 0]})
    assert (top, left, pixels.tolist()) == (1, 1, [[1, 1]])


def test_accepts_bytes_and_plain_run_lengths():
    mask = np.array([[0, 1], [1, 1]], np.uint8)
    np.testing.assert_array_equal(rle.decode({"size": [2, 2], "counts": rle.encode(mask)["counts"].encode()}), mask)
    np.testing.assert_array_equal(rle.decode({"size": [2, 2], "counts": [1, 3]}), mask)


def test_bool_and_255_masks_encode_like_ones():
    mask = np.eye(9, dtype=np.uint8)
    assert rle.encode(mask) == rle.encode(mask.astype(bool)) == rle.encode(mask * 255)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "abc",
        [],
        {},
        {"size": [2, 2]},
        {"counts": "04"},
        {"size": [2], "counts": "4"},
        {"size": [2, 2, 1], "counts": "4"},
        {"size": "22", "counts": "4"},
        {"size": [0, 2], "counts": ""},
        {"size": [-2, -2], "counts": "4"},
        {"size": [2.0, 2], "counts": "4"},
        {"size": [True, 4], "counts": "4"},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "3"},
        {"size": [2, 2], "counts": "5"},
        {"size": [2, 2], "counts": "22222"},
        {"size": [2, 2], "counts": "O"},
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": "1T"},
        {"size": [2, 2], "counts": "4 "},
        {"size": [2, 2], "counts": "4é"},
        {"size": [2, 2], "counts": "4\udc80"},
        {"size": [2, 2], "counts": b"\xff\xfe"},
        {"size": [2, 2], "counts": "o" * 40 + "4"},
        {"size": [2, 2], "counts": 4},
        {"size": [2, 2], "counts": None},
        {"size": [2, 2], "counts": [1, "3"]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": [2**70]},
        {"size": [10**9, 10**9], "counts": "4"},
        {"size": [2**40, 1], "counts": "4"},
    ],
)
def test_malformed_input_is_one_line_that_names_the_mask(broken):
    with pytest.raises(UserError, match=r"^record 7: ") as error:
        rle.decode(broken, "record 7")
    assert "\n" not in str(error.value)


def test_random_strings_never_escape_as_another_exception():
    rng = np.random.default_rng(1)
    for _ in range(3000):
        counts = bytes(rng.integers(40, 120, rng.integers(0, 12)).astype(np.uint8))
        try:
            mask = rle.decode({"size": [5, 7], "counts": counts})
        except UserError:
            continue
        assert mask.shape == (5, 7)


def test_a_large_mask_takes_no_python_loop():
    mask = (np.random.default_rng(2).random((2000, 2000)) < 0.5).astype(np.uint8)
    start = time.perf_counter()
    decoded = rle.decode(rle.encode(mask))
    seconds = time.perf_counter() - start
    np.testing.assert_array_equal(decoded, mask)
    assert seconds < 5, f"two million runs took {seconds:.1f} s"


def test_the_area_needs_no_mask():
    mask = np.random.default_rng(0).random((37, 53)) < 0.3
    assert rle.area(rle.encode(mask)) == mask.sum()
    assert rle.area({"size": [4, 3], "counts": [0, 12]}) == 12
    assert rle.area({"size": [4, 3], "counts": [12]}) == 0
    with pytest.raises(UserError, match=r"row 7: the RLE's runs cover 11 pixels"):
        rle.area({"size": [4, 3], "counts": [11]}, "row 7")
