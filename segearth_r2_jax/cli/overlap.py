"""Work that goes on in a thread beside the one that waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def overlapped(function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[Callable[[], R]]:
    """`function` of the items, in order, in one thread of its own that is at most `ahead` items further than what was taken.

    Yields for each item what returns the result of `function`, waiting for it, or raises what that raised. To be closed where it is left
    before its end (`contextlib.closing`): what has not begun is then dropped, and what has is waited for.
    """
    thread = ThreadPoolExecutor(1)
    begun: deque[Callable[[], R]] = deque()
    try:
        for item in items:
            begun.append(thread.submit(function, item).result)
            if len(begun) > ahead:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
    except BaseException:
        thread.shutdown(cancel_futures=True)
        raise
    thread.shutdown()
