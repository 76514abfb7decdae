"""What a training tells: the bar in the terminal, TensorBoard's event files, the share of the time spent waiting for data."""

import contextlib
import os
import socket
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter, masked_crc32c

# The classes are made at import, where no type checker sees them.
Event: Any = vars(event_pb2)["Event"]
SessionLog: Any = vars(event_pb2)["SessionLog"]
FILES = "events.out.tfevents.*"


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
    """One new event file in a directory; what it says of a step hides what earlier files say of it.

    Written at once and not by a thread, so that what is flushed is on the disk, and a full disk is an error here. TensorBoard
    reads files by the times in their names, so each is named after the latest, also where the clock was set back.
    """

    def __init__(self, directory: Path, start: int):
        times = [path.name.split(".")[3] for path in directory.glob(FILES)]
        after = max((int(number) + 1 for number in times if number.isdecimal()), default=0)
        name = f"events.out.tfevents.{max(int(time.time()), after)}.{socket.gethostname()}.{start:09d}.{os.getpid()}"
        self._writer = RecordWriter(str(directory / name))
        self._event(Event(file_version="brain.Event:2"))
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
        self._writer.write(event.SerializeToString())


def scalars(directory: Path, name: str) -> dict[int, float]:
    """`{step: value}` of one curve over all event files of a directory, by their steps, whatever the clock said.

    Where files overlap, as after a kill, the one that began at the later step counts. What follows damage in a file is left
    out, with a warning.
    """
    curves = []
    for path in sorted(directory.glob(FILES)):
        start, curve = 0, {}
        for event in _events(path):
            if event.session_log.status == SessionLog.START:
                start = event.step
            curve.update((event.step, value.simple_value) for value in event.summary.value if value.tag == name)
        curves.append((start, curve))
    found: dict[int, float] = {}
    for _, curve in sorted(curves, key=lambda one: one[0]):
        found |= curve
    return dict(sorted(found.items()))


def _events(path: Path) -> Iterator[Any]:
    data, at = path.read_bytes(), 0
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        whole = data[at : at + 8], data[at + 12 : at + 12 + size]
        sums = [data[at + 8 : at + 12], data[at + 12 + size : at + 16 + size]]
        if sums[0] == struct.pack("<I", masked_crc32c(whole[0])) and at + 16 + size > len(data):
            return  # The record that was being written when the run was killed.
        if sums != [struct.pack("<I", masked_crc32c(part)) for part in whole]:
            warnings.warn(f"{path} is damaged from byte {at} on: that part of it is left out.", stacklevel=3)
            return
        yield Event.FromString(whole[1])
        at += 16 + size
