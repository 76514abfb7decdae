"""Files of weights: opened, their names and shapes known, their values read when they are asked for."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from guidance_jax.checks.door import door
from guidance_jax.pretrained.checks import FilePath
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
"""Of safetensors; float8 comes with scales of its own, which no network here knows."""
LONGEST_HEADER = 100_000_000


class Tensor(NamedTuple):
    """An array of a file, not read yet.

    Example:
      >>> values = np.arange(6).reshape(2, 3)
      >>> tensor = gj.pretrained.Tensor(values.shape, values.__getitem__)
      >>> print(tensor.shape, tensor.read((slice(0, 2), slice(1, 2))).ravel())
      (2, 3) [1 4]
    """

    shape: tuple[int, ...]
    """Of the whole array, as the file has it."""
    read: Callable[[Any], np.ndarray]
    """A part of it, by a tuple of slices, one an axis; `()` of a number."""


@door()
def open_weights(path: FilePath) -> dict[str, Tensor]:
    """The weights in a `.safetensors` file, a pickle of PyTorch's, or an index of several such files, not read yet.

    Pickles are `.pt`, `.pth`, `.bin`, `.ckpt` or `.pth.tar`. Opening a file never runs code: of pickles, tensors alone are
    read, scalars and strings beside them are read past, and anything else is refused. A pickle holds checksums of its tensors,
    which are compared when they are read; safetensors has none.

    Args:
      path: Of the file, or of its `.safetensors.index.json` or `.bin.index.json`; the files that an index names lie beside it.

    Returns:
      Each weight's `Tensor`, by its published name; in nested dictionaries names are joined by dots.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged, holds no tensors, asks for anything else, or is of another kind; naming the file.

    Example:
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
    raise ValueError(
        f"{path} is no file of weights that can be read: .safetensors, {', '.join(PICKLED)}, or their .index.json."
    )


def _is_index(name: str) -> bool:
    return name.endswith(".json") and (".safetensors.index." in name or ".bin.index." in name)


def _open_several(index: Path) -> dict[str, Tensor]:
    places = read_json(index, "an index of weights").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} is damaged, or no index of weights: it has no readable weight_map.")
    for file in sorted(set(places.values())):
        if file != Path(file).name or "\0" in file or not file.isprintable() or len(file.encode()) > 255:
            raise ValueError(f"{index} names files that do not lie beside it: {file!r:.300}.")
        if not file.endswith((".safetensors", *PICKLED)):
            raise ValueError(f"{index} names {file!r}, which is no file of weights.")
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index} names {file!r}, and there is no such file beside it.")
    held = {file: open_weights(index.parent / file) for file in sorted(set(places.values()))}
    counts = Counter(name for tensors in held.values() for name in tensors)
    if wrong := sorted({name for name, count in counts.items() if count > 1} | counts.keys() ^ places.keys()):
        raise ValueError(f"{index} and its files do not name the same weights, each once: {', '.join(wrong[:8])}.")
    if wrong := sorted(name for name, file in places.items() if name not in held[file]):
        raise ValueError(f"{index} says of weights that they lie in other files than they do: {', '.join(wrong[:8])}.")
    return {name: held[file][name] for name, file in places.items()}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights that lie in memory, as `load` takes them.

    Args:
      arrays: By their published names, each of its published shape.

    Returns:
      Each array's `Tensor`, by its name.

    Example:
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
                f"{path} is damaged or truncated, or no safetensors file: of its {size:,} bytes {length:,} should be the "
                "header. Download it again."
            )
        try:
            header = parsed(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(name, told) for name, told in header.items()}
            _check_cover({name: (begin, end) for name, (_, _, begin, end) in entries.items()}, size - 8 - length)
            content = np.memmap(path, np.uint8, "r")[8 + length :]
            return {
                name: _mapped(content[begin:end].view(dtype).reshape(shape))
                for name, (dtype, shape, begin, end) in entries.items()
            }
        except ValueError as error:
            raise ValueError(f"{path} is damaged or truncated, or no safetensors file that is read here: {error}.") from error


def _entry(name: str, told: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """A tensor's dtype, shape, first byte and last, as the header has them."""
    whole = lambda values: isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r:.200} has not dtype, shape and data_offsets")
    kind, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        advice = " (take the file in float16 or float32)" if str(kind).startswith("F") else ""
        raise ValueError(f"{name!r:.200} is of the dtype {kind!r:.50}, and only {', '.join(DTYPES)} are read{advice}")
    if not whole(shape) or len(shape) > 32 or not whole(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r:.200} has a shape or offsets that are no whole numbers")
    dtype, (begin, end) = np.dtype(DTYPES[kind]), offsets
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{name!r:.200} of {kind} {shape} does not fit into {end - begin} bytes")
    return dtype, tuple(shape), begin, end


def _check_cover(places: Mapping[str, tuple[int, int]], size: int) -> None:
    """Each byte belongs to one tensor."""
    if not places:
        raise ValueError("it holds no tensors")
    ordered = sorted(places.items(), key=lambda place: place[1])
    for (_, (_, end)), (name, (begin, _)) in itertools.pairwise([("", (0, 0)), *ordered]):
        if begin != end:
            raise ValueError(f"{name!r:.200} begins at {begin}, where what lies before it ends at {end}")
    if (end := ordered[-1][1][1]) != size:
        raise ValueError(f"its tensors end at {end} of {size} bytes")


def _mapped(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, lambda index: np.array(array[index]))
