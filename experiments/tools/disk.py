"""Files of runs: written completely or not at all, by one program at a time. Errors name the file."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = ".tmp"


class DamagedError(ValueError):
    """A file that has changed since it was written."""


class UnwrittenError(OSError):
    """A file or directory that could not be written."""


def made(directory: Path) -> Path:
    """The directory, which is made if it is missing.

    Raises:
      UnwrittenError: If it cannot be made, or is not a directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file, or a link to nothing" if isinstance(error, FileExistsError) else error.strerror
        raise UnwrittenError(error.errno, f"the directory {directory} cannot be made: {why}") from error
    return directory


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to. It replaces `path` once it is complete and on the disk.

    Raises:
      UnwrittenError: If it cannot be written, as on a full disk. The old file at `path` is kept.
    """
    temporary = path.with_name(f"{secrets.token_hex(4)}.{path.name}{_TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            _held(file)  # So that `clean` does not remove it.
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, Exception) or (unwritten := _unwritten(error, temporary)) is None:
            raise
        text = f"{path} cannot be written: {unwritten.strerror or unwritten}"
        raise UnwrittenError(unwritten.errno, text) from error


def clean(directory: Path, names: str) -> None:
    """Removes temporary files that an interrupted `replacing` left. `names` is a regular expression of the final names."""
    ours = re.compile(rf"([0-9a-f]{{8}}\.)?({names}){re.escape(_TEMPORARY)}")
    for path in directory.glob("*" + _TEMPORARY):
        if ours.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError), path.open("rb") as file:
                if _held(file):
                    path.unlink()


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Locks a directory for one program. The lock is released when the program ends, however it ends.

    Raises:
      RuntimeError: If another program holds the lock.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        if not _held(handle):
            raise RuntimeError(f"another program is writing into {directory}. Wait for it, or stop it.")
        yield
    finally:
        os.close(handle)


def locked(path: Path) -> IO[str] | None:
    """The file, open, and locked until it is closed. None if another program holds the lock."""
    file = path.open("w")
    if _held(file):
        return file
    file.close()
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file.

    Raises:
      DamagedError: If the file holds no dictionary.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error or type(error).__name__})") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is damaged (it holds a {type(content).__name__}, expected a dictionary)")
    return content


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or a file size limit is exhausted, by its number or its text."""
    return any(getattr(one, "errno", None) in FULL for one in _chain(error)) or any(
        os.strerror(code) in str(error) for code in FULL
    )


def room(directory: Path, what: str, size: int) -> str:
    """A text about the space that a file needs and the space that is free."""
    try:
        free = f"{_bytes(shutil.disk_usage(directory).free)} are free in {directory}"
    except OSError as error:
        free = f"the free space of {directory} is unknown ({error.strerror})"
    return f"{what} takes {_bytes(size)}, and {free}"


def _held(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # A file system without locks.
    return True


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unwritten(error: BaseException, temporary: Path) -> OSError | None:
    """The error of writing the temporary file, if it caused `error`. A zip file that cannot be closed raises another error."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno is not None and one.filename in (None, str(temporary)):
            return one
    return None


def _bytes(size: int) -> str:
    number = float(size)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"
