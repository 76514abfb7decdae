"""How much host memory a piece of a program takes."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
STATUS = Path("/proc/self/status")


def anonymous() -> int:
    """The process's own memory now, in bytes, pages mapped from files not counted.

    Raises:
      OSError: where the system does not tell it, as only Linux does.
    """
    for line in STATUS.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no RssAnon.")


def peak(run: Callable[[], Result], every: float = 0.002) -> tuple[Result, int]:
    """What `run()` gives, and how much the process's own memory rose at most while it ran, in bytes.

    The system keeps no such peak, so it is looked at again and again.

    Args:
      run: the piece of program.
      every: how many seconds pass between two looks.
    """
    before, most, done = anonymous(), [0], threading.Event()

    def look() -> None:
        while not done.wait(every):
            most[0] = max(most[0], anonymous())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        result = run()
    finally:
        done.set()
        looking.join()
    return result, max(most[0], anonymous()) - before
