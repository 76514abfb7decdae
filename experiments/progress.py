"""What a training tells: the bar in the terminal, TensorBoard's event files, the share of the time spent waiting for data."""

import contextlib
import os
import struct
import time
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

# The classes are made at import, where no type checker sees them.
Event: Any = vars(event_pb2)["Event"]
SessionLog: Any = vars(event_pb2)["SessionLog"]


class Waiting:
    """The share of the time that goes by in waiting for an iterator: of all of it, and of each lap."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Counts from now on."""
        self._start = self._lap = time.perf_counter()
        self._waited = self._before = 0.0
        self._taken = 0

    def next(self, iterator: Any) -> Any:
        """`next(iterator)`, timed."""
        asked = time.perf_counter()
        try:
            return next(iterator)
        finally:
            self._waited += time.perf_counter() - asked
            self._taken += 1

    def share(self) -> float:
        """The time spent in `next`, of all the time since the count began."""
        return self._waited / max(time.perf_counter() - self._start, 1e-9)

    def lap(self) -> tuple[float, float]:
        """Elements a second and the share of waiting since the last lap; begins a new one."""
        now = time.perf_counter()
        seconds = max(now - self._lap, 1e-9)
        rate, share = self._taken / seconds, (self._waited - self._before) / seconds
        self._lap, self._before, self._taken = now, self._waited, 0
        return rate, share


class Events:
    """One new event file in a directory; it hides what earlier files say of the steps from `start` on.

    Written at once and not by a thread, so that what is flushed is on the disk, and a full disk is an error here.
    """

    def __init__(self, directory: Path, start: int):
        self._writer = EventsWriter(str(directory / "events"), f".{start:09d}.{os.getpid()}")
        self._event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """The scalars of one step."""
        for name, value in scalars.items():
            self._event(Event(step=step, summary=summary.scalar(name, value)))

    def flush(self) -> None:
        """All that was written goes to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; what was not flushed may be lost."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _event(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


def scalars(directory: Path, name: str) -> dict[int, float]:
    """`{step: value}` of one curve over all event files of a directory, read as TensorBoard reads them."""
    found: dict[int, float] = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            if at + 16 + size > len(data):
                break  # The record that was being written when the run was killed.
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == SessionLog.START:
                found = {step: value for step, value in found.items() if step < event.step}
            found.update((event.step, value.simple_value) for value in event.summary.value if value.tag == name)
    return found
