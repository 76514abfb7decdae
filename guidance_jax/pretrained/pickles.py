"""PyTorch's `.pt` files, read without PyTorch and without running code: a zip of a pickle and arrays.

The pickle may describe dictionaries, lists, scalars and tensors. Any other name is refused, and no name is called. The declared
sizes are compared with the file's size before anything is made. The bytes of a tensor are compared with the zip's checksum when
it is read.
"""

import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guidance_jax.pretrained.opcodes import Storage, Strided, followed

LOCAL_HEADER = 30
DEEPEST = 32
"""The maximum depth of nested dictionaries and lists."""
VISITS, NAMES = 4, 8
"""Limits in units of the pickle's length: visits of objects, repeated ones included, and letters of all names."""
ENCRYPTED = 1
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of a file of PyTorch before 1.6."""


class Stored(NamedTuple):
    """A tensor of the file.

    Args:
      shape: The shape of the tensor.
      read: Reads a part of it, given a tuple of slices. The first read compares the storage with its checksum.
    """

    shape: tuple[int, ...]
    read: Callable[[Any], np.ndarray]


def open_pickle(path: str | Path) -> dict[str, Stored]:
    """The tensors of a `.pt` file by name, mapped from the file. Names in dictionaries and lists are joined by dots.

    Opening a file never runs code. Scalars and strings beside the tensors are skipped.

    Args:
      path: A file that `torch.save` of PyTorch 1.6 or later wrote.

    Raises:
      ValueError: If the file is damaged, has PyTorch's format before 1.6, or asks for anything but tensors. When a tensor is
        read, if its bytes do not match the file's checksum.

    Reference: PyTorch's torch/serialization.py, for the format alone.
    """
    path = Path(path)
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    if bytes(content[: len(LEGACY)]) == LEGACY:
        raise ValueError(
            f"{path} has PyTorch's format before 1.6, expected that since 1.6. In PyTorch, load it and save it again with "
            "torch.save."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive, content)
        roots = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise zipfile.BadZipFile(f"it has {len(roots) or 'no'} data.pkl")
        root = roots[0]
        if root + "byteorder" in records and _whole(records, root + "byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine, which is not supported")
        pickled = _whole(records, root + "data.pkl")
    except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, OSError, OverflowError, struct.error) as error:
        raise ValueError(
            f"{path} is truncated or damaged, or not of PyTorch's format since 1.6: {error}. Download it again, or save it "
            "again with torch.save."
        ) from error
    try:
        found = dict[str, Stored]()
        for name, tensor in _flat(followed(pickled, len(content)), len(pickled)):
            if name in found:
                raise pickle.UnpicklingError(f"the name {name!r:.200} occurs twice")
            found[name] = _stored(tensor, root, records, path)
        if not found:
            raise pickle.UnpicklingError("it holds no tensors with names")
    except (pickle.UnpicklingError, ValueError, OverflowError, Warning) as error:
        raise ValueError(
            f"{path} is refused: {error}. Only tensors, dictionaries and lists of them, and scalars are read, "
            "and no code is run."
        ) from error
    return found


class _Record:
    """A member of the zip, as stored."""

    def __init__(self, info: zipfile.ZipInfo, content: np.ndarray):
        self.info, self.content, self.whole = info, content, False

    def checked(self) -> np.ndarray:
        """Its bytes, mapped, and compared with the checksum once."""
        if not self.whole:
            if zlib.crc32(self.content.data) != self.info.CRC:
                raise ValueError(f"{self.info.filename!r:.200} is damaged: its checksum does not match")
            self.whole = True
        return self.content


def _records(archive: zipfile.ZipFile, content: np.ndarray) -> dict[str, _Record]:
    """The place of each member, on which the zip's directory and the member itself must agree."""
    records = dict[str, _Record]()
    for info in archive.infolist():
        member = f"{info.filename!r:.200}"
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & ENCRYPTED:
            raise zipfile.BadZipFile(f"{member} is compressed or encrypted, which PyTorch does not do")
        begin = info.header_offset
        header = bytes(content[begin : begin + LOCAL_HEADER]) if 0 <= begin < len(content) else b""
        if len(header) < LOCAL_HEADER or header[:4] != b"PK\3\4":
            raise zipfile.BadZipFile(f"{member} does not begin where the directory states")
        length, extra = struct.unpack("<HH", header[26:])
        start = begin + LOCAL_HEADER + length + extra
        if start + info.file_size > len(content):
            raise zipfile.BadZipFile(f"{member} ends beyond the file")
        own = bytes(content[begin + LOCAL_HEADER : begin + LOCAL_HEADER + length])
        if own != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437") or info.filename in records:
            raise zipfile.BadZipFile(f"{member} has two names, or occurs twice")
        records[info.filename] = _Record(info, content[start : start + info.file_size])
    return records


def _whole(records: dict[str, _Record], name: str) -> bytes:
    return records[name].checked().tobytes()


def _flat(found: Any, size: int) -> Iterator[tuple[str, Strided]]:
    """The tensors by name. Each visit of an object counts, because an object can occur often or contain itself."""
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"it holds {_kind(found)}, not tensors by name")
    visits, letters = VISITS * size, NAMES * size

    def walk(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, Strided]]:
        nonlocal visits, letters
        visits -= 1
        if visits < 0:
            raise pickle.UnpicklingError("it holds the same dictionaries or lists too often")
        if isinstance(value, Strided):
            name = ".".join(map(str, path))
            letters -= len(name)
            if letters < 0:
                raise pickle.UnpicklingError("its names are too long for its size")
            yield name, value
        elif isinstance(value, dict | list) or type(value) is tuple:
            if len(path) == DEEPEST:
                raise pickle.UnpicklingError(f"it is nested deeper than {DEEPEST}, or holds itself")
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(inner, (*path, key))

    return walk(found, ())


def _kind(value: Any) -> str:
    return "a tensor" if isinstance(value, Strided) else type(value).__name__


def _stored(tensor: Strided, root: str, records: dict[str, _Record], path: Path) -> Stored:
    storage, offset, shape, strides = tensor
    record = records.get(f"{root}data/{storage.key}")
    if record is None:
        raise pickle.UnpicklingError(f"it has no storage {storage.key!r:.200}")
    _check_inside(storage, len(record.content), offset, shape, strides)
    numbers = record.content[: storage.size * storage.dtype.itemsize].view(storage.dtype)[offset:]
    steps = tuple(stride * storage.dtype.itemsize for stride in strides)
    array = np.lib.stride_tricks.as_strided(numbers, shape, steps, writeable=False)

    def read(index: Any) -> np.ndarray:
        try:
            record.checked()
        except ValueError as error:
            raise ValueError(f"{path}: {error}. Download it again.") from error
        return array[index]

    return Stored(shape, read)


def _check_inside(storage: Storage, size: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    if not 0 <= storage.size * storage.dtype.itemsize <= size:
        raise pickle.UnpicklingError(f"the storage {storage.key!r:.200} is too short for {storage.size} numbers")
    last = offset + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or offset > storage.size or (math.prod(shape) and last >= storage.size):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} lies outside its storage")
    if math.prod(shape) > storage.size:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} repeats the {storage.size} numbers of its storage")
