"""What a job prints while it runs: its plan, one line per stage with its time, and the progress within a stage.

A terminal has bars. A file has a line of progress every half minute instead, and one while a long first step compiles.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self, TypeVar

import jax
from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines of progress in a file."""
SILENT = 5.0
"""Seconds after which a file says that the first step is still compiling."""
WIDTH = 97
"""The maximum number of characters in a line of the plan."""
Tell = Callable[[str], None]
Item = TypeVar("Item")


def say(text: str) -> None:
    """Prints a line, in process 0 only. A bar moves down for it, and a file has it at once."""
    if jax.process_index() == 0:
        tqdm.write(text)
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """A number of seconds in words: "3.2 s", "95 s", "12 min 40 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def tera(operations: float) -> str:
    """A number of operations in TFLOP: "0.0012", "3.4", "1,250"."""
    return f"{operations / 1e12:,.0f}" if operations >= 1e13 else f"{operations / 1e12:.2g}"


class Stages:
    """The stages of a job. It prints the plan at once, and one line at the end of each stage.

    Args:
      title: What the job does, and how long it takes.
      plan: What is known in advance of each stage, such as "about 2 minutes", by the name of the stage.
    """

    def __init__(self, title: str, plan: dict[str, str]):
        self._names = tuple(plan)
        parts = (f"{self._numbered(name)}, {known}" if known else self._numbered(name) for name, known in plan.items())
        lines = [""]
        for part in parts:
            if len(lines[-1]) + len(part) > WIDTH:
                lines.append("")
            lines[-1] += f" · {part}" if lines[-1] else part
        say("\n".join([title, *lines]))

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Tell]:
        """One stage. It gives a function that adds a text to the line of the stage, after the time."""
        start, told = time.perf_counter(), []
        yield told.append
        taken = duration(time.perf_counter() - start)
        say(f"{self._numbered(name)}: {taken}" + (f" ({', '.join(told)})" if told else ""))

    def _numbered(self, name: str) -> str:
        return f"{self._names.index(name) + 1}/{len(self._names)} {name}"


class Progress:
    """Progress of a loop: a bar on a terminal, which disappears at the end, or a line every half minute in a file.

    The time begins with the first update. The first step compiles, so its time says nothing about the others.

    Args:
      name: The name of the loop.
      total: The number of steps.
      unit: What one step is, such as "step".
      done: The number of steps that were done before.
      hidden: Whether nothing is shown, as in all processes but one.
    """

    def __init__(self, name: str, total: int, unit: str, done: int = 0, hidden: bool = False):
        self.name, self.total, self.unit, self.done, self.hidden = name, total, unit, done, hidden
        self._first: tuple[int, float] | None = None
        self._bar, self._silence, self._terminal = None, None, sys.stderr.isatty()

    def __enter__(self) -> Self:
        self._start = self._said = time.perf_counter()
        if self._terminal and not self.hidden:
            self._bar = tqdm(desc=f"{self.name}: compiling", bar_format="{desc}", leave=False)
        elif not self.hidden:
            self._silence = threading.Timer(SILENT, say, (f"    {self.name}: compiling",))
            self._silence.daemon = True
            self._silence.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._silence is not None:
            self._silence.cancel()
        if self._bar is not None:
            self._bar.close()

    def update(self, steps: int = 1) -> None:
        """Counts steps that are done."""
        self.done += steps
        now = time.perf_counter()
        if self._first is None:
            self._first = self.done, now
            if self._silence is not None:
                self._silence.cancel()
            if self._bar is not None:
                self._bar.close()
                shown = {"desc": self.name, "unit": self.unit, "dynamic_ncols": True, "leave": False}
                self._bar = tqdm(total=self.total, initial=self.done, **shown)
        elif self._bar is not None:
            self._bar.update(steps)
        if not self._terminal and not self.hidden and now - self._said >= EVERY and self.done < self.total:
            self._said = now
            since, begun = self._first
            taken = f"{self.done:,} of {self.total:,} {self.unit}s in {duration(now - self._start)}"
            left = (self.total - self.done) * (now - begun) / max(self.done - since, 1)
            say(f"    {self.name}: {taken}" + (f", about {duration(left)} left" if self.done > since else ""))

    def note(self, text: str) -> None:
        """Shows a text behind the bar."""
        if self._bar is not None and self._first is not None:
            self._bar.set_postfix_str(text, refresh=False)


def each(name: str, items: Iterable[Item], unit: str = "step") -> Iterator[Item]:
    """The items, with the progress of the loop over them."""
    items = tuple(items)
    with Progress(name, len(items), unit) as progress:
        for item in items:
            yield item
            progress.update()
