"""Measures the host memory that a function needs."""

import threading
from collections.abc import Callable
from typing import TypeVar

import psutil

Result = TypeVar("Result")


def own() -> int:
    """The process's own memory now, in bytes. Pages mapped from files are not counted where the system reports them."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def peak(run: Callable[[], Result], every: float = 0.002) -> tuple[Result, int]:
    """The result of `run()`, and the largest increase of the process's own memory while it ran, in bytes.

    The system records no such maximum, so a thread samples the memory repeatedly.

    Args:
      run: The function to measure.
      every: Seconds between two samples.
    """
    before, most, done = own(), [0], threading.Event()

    def look() -> None:
        while not done.wait(every):
            most[0] = max(most[0], own())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        result = run()
    finally:
        done.set()
        looking.join()
    return result, max(most[0], own()) - before
