"""The search for the largest batch, against a compiler that needs a known amount of memory."""

import pytest

from segearth_r2_jax.ahead_of_time.largest_batch import largest_batch
from segearth_r2_jax.ahead_of_time.report import Memory, Report


def _search(needs, usable: int, *, fixed: int = 0, **options) -> tuple[int, int | None, list[int]]:
    """(largest that fits, smallest that does not, sizes in the order in which they were compiled); `fixed`: bytes of the arguments."""

    def compile_batch(size: int) -> Report:
        memory = Memory(0, 0, 0, needs(size) - fixed, 0, needs(size), usable)
        return Report("train", {"images per device": size}, {}, memory, None, 0.0, 0.0)

    tried = largest_batch(compile_batch, **options)
    fitting = [size for size, report in tried.items() if report.memory.fits]
    failing = [size for size, report in tried.items() if not report.memory.fits]
    return max(fitting, default=0), min(failing, default=None), list(tried)


@pytest.mark.parametrize("constant", [0, 30])
@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 13, 31])
def test_memory_that_grows_evenly_is_searched_in_few_compilations(largest, constant):
    """`constant`: bytes of the temporaries that do not grow."""
    arguments = 500
    usable = arguments + constant + 100 * largest + 50
    found, next_size, tried = _search(lambda size: arguments + constant + 100 * size, usable, fixed=arguments)
    assert (found, next_size) == (largest, largest + 1)
    assert len(tried) <= 4
    # One unit and the largest size are compiled, all others refused.
    assert [size for size in tried if size <= largest] == sorted({1, largest})


@pytest.mark.parametrize("largest", [2, 5, 11])
def test_memory_that_grows_unevenly_is_searched_too(largest):
    found, next_size, tried = _search(lambda size: size**2 + 30 * (size % 2), largest**2 + 31)
    assert largest - 1 <= found < next_size <= found + 1
    assert len(tried) <= 6


@pytest.mark.parametrize("slack", [0, 40])
def test_a_compiler_that_saves_where_it_must_is_searched_too(slack):
    """Close to the limit it recomputes, and needs as good as the same memory for many sizes."""
    found, next_size, tried = _search(lambda size: min(100 * size, 1600 + size) + (size > 24) * 10 * size, 1650 + slack)
    assert found <= 24 < next_size <= found + 2
    assert len(tried) <= 8


def test_of_large_batches_the_largest_is_found_within_2_percent():
    found, next_size, _ = _search(lambda size: 100 * size + (size % 7) * 60, 15_000)
    assert found < next_size <= 1.02 * found + 1
    assert 145 <= found <= 150


def test_where_one_does_not_fit_nothing_else_is_tried():
    assert _search(lambda size: 100 * size, 50) == (0, 1, [1])


def test_sizes_are_multiples_of_the_unit():
    found, next_size, tried = _search(lambda size: 100 * size, 1399, unit=4)
    assert (found, next_size) == (12, 16)
    assert all(size % 4 == 0 for size in tried)


def test_the_number_of_compilations_is_limited():
    found, next_size, tried = _search(lambda size: 100, 1000, compilations=4)
    assert len(tried) == 4
    assert (found, next_size) == (max(tried), None)
