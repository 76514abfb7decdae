"""How much host memory a piece of a program takes."""

import threading
from collections.abc import Callable
from typing import TypeVar

import psutil

Result = TypeVar("Result")


def own() -> int:
    """The process's own memory now, in bytes; pages mapped from files are not counted where the system tells them apart."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def peak(run: Callable[[], Result], every: float = 0.002) -> tuple[Result, int]:
    """What `run()` gives, and how much the process's own memory rose at most while it ran, in bytes.

    The system keeps no such peak, so it is looked at again and again.

    Args:
      run: the piece of program.
      every: how many seconds pass between two looks.
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
