"""Work in a thread beside: its order, how far it goes ahead, and its end."""

from __future__ import annotations

import contextlib
import threading

import pytest

from segearth_r2_jax.cli.overlap import overlapped


def test_results_come_in_order_and_errors_in_their_place():
    def halved(number: int) -> float:
        if number % 3 == 0:
            raise ValueError(f"{number}")
        return number / 2

    results = list(overlapped(halved, range(1, 5), ahead=2))
    assert [results[i]() for i in (0, 1, 3)] == [0.5, 1, 2]
    with pytest.raises(ValueError, match="3"):
        results[2]()


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_goes_on_while_the_taker_works_and_not_too_far(ahead: int):
    begun: list[int] = []
    far_enough = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == ahead:
            far_enough.set()
        return number

    results = overlapped(work, range(20), ahead=ahead)
    assert next(results)() == 0
    assert far_enough.wait(30)
    assert begun == list(range(ahead + 1))
    assert [result() for result in results] == list(range(1, 20))


def test_what_has_not_begun_when_it_is_left_is_dropped():
    entered, leave = threading.Event(), threading.Event()
    done: list[int] = []

    def work(number: int) -> int:
        if number == 1:
            entered.set()
            assert leave.wait(30)
        done.append(number)
        return number

    with contextlib.closing(overlapped(work, range(20), ahead=5)) as results:
        assert next(results)() == 0
        assert entered.wait(30)
        threading.Timer(0.2, leave.set).start()
    assert done == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]


def test_an_error_of_the_items_comes_through():
    def items():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(str, items(), ahead=1))


def test_nothing():
    assert list(overlapped(str, [], ahead=2)) == []
