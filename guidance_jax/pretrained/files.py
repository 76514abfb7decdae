"""Files of weights: opened, their names and shapes known, their values read when they are asked for."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guidance_jax.pretrained.pickles import open_pickle


class Tensor(NamedTuple):
    """An array of a file, not read yet.

    Example:
      >>> values = np.arange(6).reshape(2, 3)
      >>> tensor = pretrained.Tensor(values.shape, values.__getitem__)
      >>> print(tensor.shape, tensor.read((slice(0, 2), slice(1, 2))).ravel())
      (2, 3) [1 4]
    """

    shape: tuple[int, ...]
    """Of the whole array, as the file has it."""
    read: Callable[[Any], np.ndarray]
    """A part of it, by a tuple of slices, one an axis; `()` of a number."""


def open_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a `.safetensors` file, a `.safetensors.index.json` of several, or a `.pt` or `.pth` file, not read yet.

    Opening a file never runs code: of pickles, tensors alone are read, and anything else is refused.

    Args:
      path: of the file; the files that an index names lie beside it.

    Returns:
      Each weight's `Tensor`, by its published name.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is truncated, holds anything but tensors, or is of another kind.
      ImportError: if the package safetensors is needed and not installed.

    Example:
      >>> import pathlib, safetensors.numpy, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
      >>> safetensors.numpy.save_file({"bias": np.arange(3.0)}, file)
      >>> weights = pretrained.open_weights(file)
      >>> print(weights["bias"].shape, weights["bias"].read((slice(1, 3),)))
      (3,) [1. 2.]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if ".safetensors.index." in path.name and path.suffix == ".json":
        return _open_several(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return from_arrays(open_pickle(path))
    raise ValueError(f"{path} is no file of weights that can be read: .safetensors, .safetensors.index.json, .pt, .pth, .bin.")


def _open_several(index: Path) -> dict[str, Tensor]:
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is damaged, or no index of weights: it has no readable weight_map ({error!r}).") from error
    if outside := sorted({file for file in places.values() if file != Path(file).name}):
        raise ValueError(f"{index} names files that do not lie beside it: {outside}.")
    held = {file: open_weights(index.parent / file) for file in sorted(set(places.values()))}
    names = [name for tensors in held.values() for name in tensors]
    if sorted(names) != sorted(places):
        wrong = sorted({name for name in names if names.count(name) > 1} | set(names) ^ set(places))
        raise ValueError(f"{index} and its files do not name the same weights, each once: {', '.join(wrong[:8])}.")
    return {name: held[file][name] for name, file in places.items() if name in held[file]}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights that lie in memory, as `load` takes them.

    Args:
      arrays: by their published names, each of its published shape.

    Returns:
      Each array's `Tensor`, by its name.

    Example:
      >>> print(pretrained.from_arrays({"bias": np.zeros(3)})["bias"].shape)
      (3,)
    """
    return {name: Tensor(array.shape, array.__getitem__) for name, array in arrays.items()}


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            "reading .safetensors needs the package safetensors: pip install guidance_jax[pretrained]."
        ) from error
    try:
        file = safe_open(path, framework="np")
        names = list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or truncated, or no safetensors file: {error}. Download it again.") from error

    def tensor(name: str) -> Tensor:
        part = file.get_slice(name)
        shape = tuple(part.get_shape())
        return Tensor(shape, lambda index: part[index] if shape else file.get_tensor(name))

    return {name: tensor(name) for name in names}
