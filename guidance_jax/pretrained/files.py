"""Files of weights. Opening one reads names and shapes; values are read on demand."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from guidance_jax.checks.door import door
from guidance_jax.pretrained.checks import Arrays, FilePath
from guidance_jax.pretrained.pickles import open_pickle
from guidance_jax.pretrained.settings import parsed, read_json

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pt.tar", ".pth.tar")
DTYPES: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
"""The dtypes of safetensors. float8 has separate scales, which no network here uses."""
LONGEST_HEADER = 100_000_000


class Tensor(NamedTuple):
    """An array in a file, not yet read.

    Args:
      shape: The shape of the whole array in the file.
      read: Reads a part of the array, given a tuple of slices with one per axis; `()` for a scalar.

    Example:
      >>> import numpy as np
      >>> values = np.arange(6).reshape(2, 3)
      >>> tensor = gj.pretrained.Tensor(values.shape, values.__getitem__)
      >>> print(tensor.shape, tensor.read((slice(0, 2), slice(1, 2))).ravel())
      (2, 3) [1 4]
    """

    shape: tuple[int, ...]
    read: Callable[[Any], np.ndarray]


@door()
def open_weights(path: FilePath) -> dict[str, Tensor]:
    """The weights in a `.safetensors` file, a PyTorch pickle, or an index of several such files, not yet read.

    Pickles are `.pt`, `.pth`, `.bin`, `.ckpt` or `.pth.tar`. Opening a file never runs code. From a pickle only tensors are
    read: scalars and strings beside them are skipped, and anything else is refused. A pickle has checksums of its tensors,
    which are compared when they are read. safetensors has none.

    Args:
      path: The file, or its `.safetensors.index.json` or `.bin.index.json`. The files that an index names are in its directory.

    Returns:
      One `Tensor` per weight, by its published name. Names in nested dictionaries are joined by dots.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged, holds no tensors, asks for anything else, or has another format. The error names the
        file.

    Example:
      >>> import numpy as np
      >>> import pathlib, safetensors.numpy, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
      >>> safetensors.numpy.save_file({"bias": np.arange(3.0)}, file)
      >>> weights = gj.pretrained.open_weights(file)
      >>> print(weights["bias"].shape, weights["bias"].read((slice(1, 3),)))
      (3,) [1. 2.]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if _is_index(path.name):
        return _open_several(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.name.endswith(PICKLED):
        return {name: Tensor(*stored) for name, stored in open_pickle(path).items()}
    raise ValueError(f"{path} is not a file of weights, expected .safetensors, {', '.join(PICKLED)}, or their .index.json.")


def _is_index(name: str) -> bool:
    return name.endswith(".json") and (".safetensors.index." in name or ".bin.index." in name)


def _open_several(index: Path) -> dict[str, Tensor]:
    places = read_json(index, "an index of weights").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} is damaged, or not an index of weights: it has no readable weight_map.")
    for file in sorted(set(places.values())):
        if file != Path(file).name or "\0" in file or not file.isprintable() or len(file.encode()) > 255:
            raise ValueError(f"{index} names a file that is not beside it: {file!r:.300}.")
        if not file.endswith((".safetensors", *PICKLED)):
            raise ValueError(f"{index} names {file!r}, which is not a file of weights.")
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index} names {file!r}, and there is no such file beside it.")
    held = {file: open_weights(index.parent / file) for file in sorted(set(places.values()))}
    counts = Counter(name for tensors in held.values() for name in tensors)
    if wrong := sorted({name for name, count in counts.items() if count > 1} | counts.keys() ^ places.keys()):
        raise ValueError(f"{index} and its files do not name the same weights, each once: {', '.join(wrong[:8])}.")
    if wrong := sorted(name for name, file in places.items() if name not in held[file]):
        raise ValueError(f"{index} names the wrong files for weights: {', '.join(wrong[:8])}.")
    return {name: held[file][name] for name, file in places.items()}


@door()
def from_arrays(arrays: Arrays) -> dict[str, Tensor]:
    """Weights in memory, as `load` takes them.

    Args:
      arrays: The arrays by their published names, each of its published shape.

    Returns:
      One `Tensor` per array, by its name.

    Raises:
      TypeError: If arrays are not a dictionary.

    Example:
      >>> import numpy as np
      >>> print(gj.pretrained.from_arrays({"bias": np.zeros(3)})["bias"].shape)
      (3,)
    """
    return {name: Tensor(array.shape, array.__getitem__) for name, array in arrays.items()}


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise ValueError(
                f"{path} is damaged or truncated, or not a safetensors file: its header should have {length:,} of {size:,} "
                "bytes. Download it again."
            )
        try:
            header = parsed(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(name, entry) for name, entry in header.items()}
            _check_cover({name: (begin, end) for name, (_, _, begin, end) in entries.items()}, size - 8 - length)
            content = np.memmap(path, np.uint8, "r")[8 + length :]
            return {
                name: _mapped(content[begin:end].view(dtype).reshape(shape))
                for name, (dtype, shape, begin, end) in entries.items()
            }
        except ValueError as error:
            raise ValueError(f"{path} is damaged or truncated, or not a supported safetensors file: {error}.") from error


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """A tensor's dtype, shape, first byte and last byte, from the header."""
    whole = lambda values: isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r:.200} must have dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        advice = " (take the file in float16 or float32)" if str(kind).startswith("F") else ""
        raise ValueError(f"{name!r:.200} has the dtype {kind!r:.50}, expected one of {', '.join(DTYPES)}{advice}")
    if not whole(shape) or len(shape) > 32 or not whole(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r:.200} has a shape or offsets that are not whole numbers")
    dtype, (begin, end) = np.dtype(DTYPES[kind]), offsets
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{name!r:.200} of {kind} {shape} does not fit into {end - begin} bytes")
    return dtype, tuple(shape), begin, end


def _check_cover(places: Mapping[str, tuple[int, int]], size: int) -> None:
    """Raises unless each byte belongs to exactly one tensor."""
    if not places:
        raise ValueError("it holds no tensors")
    ordered = sorted(places.items(), key=lambda place: place[1])
    for (_, (_, end)), (name, (begin, _)) in itertools.pairwise([("", (0, 0)), *ordered]):
        if begin != end:
            raise ValueError(f"{name!r:.200} begins at {begin}, but the tensor before it ends at {end}")
    if (end := ordered[-1][1][1]) != size:
        raise ValueError(f"its tensors end at {end} of {size} bytes")


def _mapped(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, lambda index: np.array(array[index]))
