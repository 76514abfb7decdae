"""PyTorch's `.pt` files, read without PyTorch and without running what they hold: a pickle of tensors is a zip of arrays.

The pickle may build dictionaries, lists and tensors. Every other name that it asks for is refused, so nothing can be called.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
LOCAL_HEADER = 30


class _Held(NamedTuple):
    """What the pickle is given in place of a dtype, a storage or a tensor: nothing of it can be called or set."""

    value: Any


def open_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pt` file by their names, mapped from the file; nested dictionaries' names are joined by dots.

    Opening a file never runs code.

    Args:
      path: of a file that `torch.save` wrote, since PyTorch 1.6.

    Raises:
      ValueError: if the file is truncated, of PyTorch's format before 1.6, or holds anything but tensors.

    Reference: PyTorch's torch/serialization.py, for the format alone.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if entry is None:
                raise zipfile.BadZipFile("it has no data.pkl")
            root = entry.removesuffix("data.pkl")
            if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
                raise ValueError(f"{path} was written on a big-endian machine, which is not read here.")
            pickled = archive.read(entry)
            found = _Tensors(pickled, lambda key: _mapped(path, archive, f"{root}data/{key}")).load()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is truncated, or not of PyTorch's format since 1.6: {error}. Download it again, or save it anew with "
            "torch.save."
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is refused: {error}. Only tensors and dictionaries of them are read, and no code is run."
        ) from error
    return dict(_flat(found, path))


class _Tensors(pickle.Unpickler):
    """An unpickler that knows tensors alone."""

    def __init__(self, pickled: bytes, storage: Callable[[str], np.ndarray]):
        super().__init__(io.BytesIO(pickled))
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        # Functions made anew, for a pickle may set attributes of what it is given.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuilt(*arguments)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in DTYPES:
            return _Held(np.dtype(DTYPES[name]))
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Held:
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, _Held):
            raise pickle.UnpicklingError(f"it refers to {kind!r}")
        data, expected = self.storage(key), size * dtype.value.itemsize
        if not 0 <= expected <= len(data):
            raise pickle.UnpicklingError(f"the storage {key} is too short for {size} numbers")
        return _Held(data[:expected].view(dtype.value))


def _rebuilt(storage: _Held, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Held:
    data = storage.value
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (math.prod(shape) and last >= len(data)):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} lies outside its storage")
    steps = tuple(stride * data.itemsize for stride in strides)
    return _Held(np.lib.stride_tricks.as_strided(data[offset:], shape, steps, writeable=False))


def _mapped(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The bytes of an entry that is stored as it is, mapped from the file."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{name} is compressed, which PyTorch does not do")
    header = np.memmap(path, np.uint8, "r", info.header_offset, (LOCAL_HEADER,))
    start = info.header_offset + LOCAL_HEADER + sum(header[26:30].view("<u2").tolist())
    if start + info.file_size > path.stat().st_size:
        raise zipfile.BadZipFile(f"{name} ends beyond the file")
    return np.memmap(path, np.uint8, "r", start, (info.file_size,)) if info.file_size else np.zeros(0, np.uint8)


def _flat(found: Any, path: Path, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}{' as ' + prefix if prefix else ''}, not tensors by their names.")
    flat = []
    for name, value in found.items():
        whole = f"{prefix}.{name}" if prefix else str(name)
        flat += [(whole, value.value)] if isinstance(value, _Held) else _flat(value, path, whole)
    return flat
