"""What the parts share: paired times, the device's peak, memory, and the time that is left."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Run = Callable[[], Any]


class Clock:
    """The time of a part.

    Args:
      minutes: The part's share of the time.
    """

    def __init__(self, minutes: float):
        self._end = time.perf_counter() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.perf_counter()

    def lacks(self, seconds: float) -> str | None:
        """Why a row that takes so many seconds is left out, or None if there is time for it."""
        if self.left >= seconds:
            return None
        return f"left out: it needs about {seconds:.0f} s, and {max(0.0, self.left):.0f} s were left"


def seconds(run: Run) -> float:
    """The seconds of one run, with the wait for its result."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def paired(first: Run, second: Run, pairs: int) -> list[tuple[float, float]]:
    """Seconds of both runs, in turn. Each is run once before. The order changes from pair to pair."""
    for run in (first, second):
        seconds(run)
    found = []
    for number in range(pairs):
        if number % 2:
            later = seconds(second)
            found.append((seconds(first), later))
        else:
            found.append((seconds(first), seconds(second)))
    return found


def ratio(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """The median of the second time over the first, with its quartiles, and the median of each time."""
    ratios = sorted(second / first for first, second in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
    both = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"ratio": middle, "quartiles": [low, high], "seconds": list(both), "pairs": pairs}


def peak(smoke: bool) -> float:
    """Operations per second of a large product of bfloat16 matrices of random numbers: the best of five."""
    side, times = (64, 1) if smoke else (8192, 20)
    one, two = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(lambda a, b: a @ b).lower(one, two).compile()

    def run() -> Any:
        last = one
        for _ in range(times):
            last = product(one, two)
        return last

    run()
    return 2 * side**3 * times / min(seconds(run) for _ in range(5))


def memory(program: Any) -> float:
    """The peak memory of a compiled program in bytes, with its arguments and results."""
    used = program.memory_analysis()
    return used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes


def high_water() -> int | None:
    """The peak memory of the process on its device in bytes so far, or None where the device does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
