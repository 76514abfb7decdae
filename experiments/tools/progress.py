"""The log of a training run: TensorBoard's event files, and the fraction of the time spent waiting for data."""

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

# protobuf makes the classes at import, so type checkers do not know them.
Event: Any = vars(event_pb2)["Event"]
SessionLog: Any = vars(event_pb2)["SessionLog"]
FILES = "events.out.tfevents.*"


class Waiting:
    """The fraction of the time spent waiting for an iterator, in total and per lap."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts the measurement again."""
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
        """The fraction of the time since the start that was spent in `next`."""
        return self._waited / max(time.perf_counter() - self._start, 1e-9)

    def lap(self) -> tuple[float, float]:
        """Elements per second and the fraction spent waiting since the last lap. Starts a new lap."""
        now = time.perf_counter()
        seconds = max(now - self._lap, 1e-9)
        rate, share = self._taken / seconds, (self._waited - self._before) / seconds
        self._lap, self._before, self._taken = now, self._waited, 0
        return rate, share


class Events:
    """One new event file in a directory. Its values of a step override those of earlier files.

    It is written directly and not by a thread. So flushed values are on the disk, and a full disk raises an error here.
    TensorBoard reads files in the order of the times in their names. A new file gets a later time than all others, even if
    the clock was set back.

    Args:
      directory: The run's directory.
      start: The step at which this file starts.
    """

    def __init__(self, directory: Path, start: int):
        times = [path.name.split(".")[3] for path in directory.glob(FILES)]
        after = max((int(number) + 1 for number in times if number.isdecimal()), default=0)
        name = f"events.out.tfevents.{max(int(time.time()), after)}.{socket.gethostname()}.{start:09d}.{os.getpid()}"
        self._writer = RecordWriter(str(directory / name))
        self._event(Event(file_version="brain.Event:2"))
        self._event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of one step."""
        for name, value in scalars.items():
            self._event(Event(step=step, summary=summary.scalar(name, value)))

    def flush(self) -> None:
        """Writes all values to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file. Values that were not flushed may be lost."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _event(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


def scalars(directory: Path, name: str) -> dict[int, float]:
    """`{step: value}` of one curve, from all event files of a directory.

    Files can overlap after a kill. Then the file that started at the later step is used. The part of a file that follows
    damage is left out, with a warning.
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
            return  # This record was being written when the run was killed.
        if sums != [struct.pack("<I", masked_crc32c(part)) for part in whole]:
            warnings.warn(f"{path} is damaged from byte {at} on. The rest of it is left out.", stacklevel=3)
            return
        yield Event.FromString(whole[1])
        at += 16 + size
