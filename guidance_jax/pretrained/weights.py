"""From files of published weights to modules. Each weight is used exactly once, and read directly to its device.

The attributes of a module have the published names: `down.0.conv.weight` of a file is `down[0].conv.kernel` of the module. Only
the order of axes differs, and the last part of the name.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from guidance_jax.checks.door import door
from guidance_jax.pretrained.checks import Build, Module, Parameters, Tensors
from guidance_jax.pretrained.files import Tensor

Place = Sharding | Callable[[str, tuple[int, ...]], Sharding] | None

WEIGHTS = {"kernel": "weight", "scale": "weight", "gain": "weight", "embedding": "weight"}
"""Flax's names for the weight of a dense layer or convolution, a norm, our norm, and a table."""
ORDERS = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}
"""The axes of a kernel as indices of PyTorch's weight `[out, in, ...]`."""
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that PyTorch inserts into names when it compiles or shards a module."""
CONTAINERS = {
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "params_ema"),
    *("ema", "ema_state_dict", "ema_model", "model_ema", "shadow_params"),
}
"""The names of a network's weights in checkpoints of training. They may be nested: `state_dict.module`."""
COMPANIONS = CONTAINERS | {
    *("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "opt", "optimizers"),
    *("scheduler", "lr_scheduler", "lr_schedulers", "scaler", "callbacks", "loops", "rng_state", "rng", "step", "epoch"),
}
"""The names of other entries of such checkpoints, which are not read."""
SINGLE_FILE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders.")
"""The first parts of names in a single-file Stable Diffusion checkpoint."""


@door()
def load(
    build: Build[Module],
    tensors: Tensors,
    *,
    rename: Callable[[str], str] | None = None,
    ignored: Collection[str] = (),
    dtype: Parameters = jnp.float32,
    sharding: Place = None,
) -> Module:
    """A module with published weights, each used exactly once.

    Each weight is read from the file to the devices separately, and each device reads only its own part. The host holds one
    weight at a time.

    From a checkpoint of training, such as `{"state_dict": weights, "epoch": 3}` or `{"ema": weights, "optimizer": ...}`, only
    the network's weights are read. Parts that PyTorch adds to names, `module.` and `_orig_mod.`, are removed.

    Args:
      build: A function that makes the module, `lambda rngs: UNet(config, rngs=rngs)`. It is only traced, so nothing is
        initialised.
      tensors: The weights by their published names, from `open_weights`.
      rename: A function from a name in the file to the module's name, for older files; None if they are the same.
      ignored: Names in the file that are not weights, such as tables of positions 0, 1, 2.
      dtype: The dtype of the parameters, float32 or bfloat16. The networks of this package compute in it.
      sharding: The placement of the weights: one (replicated) sharding for all, or `(name, shape) -> sharding`, as from
        `fully_sharded`. None is the default device.

    Raises:
      TypeError: If build is not a function, or tensors are not a dictionary.
      ValueError: If a weight is missing, left over, of another shape, or there twice; the error names it. Also if a checkpoint
        holds the network's weights several times, or is a single-file Stable Diffusion checkpoint.

    Example:
      >>> import numpy as np
      >>> from flax import nnx
      >>> values = {"weight": np.ones((3, 2), np.float32), "bias": np.zeros(3, np.float32)}
      >>> tensors = gj.pretrained.from_arrays(values)
      >>> build = lambda rngs: nnx.Linear(2, 3, rngs=rngs)
      >>> dense = gj.pretrained.load(build, tensors, dtype=jnp.bfloat16)
      >>> print(dense.kernel.shape, dense(jnp.ones((1, 2), jnp.bfloat16)))
      (2, 3) [[2 2 2]]
    """
    rename = rename or (lambda name: name)
    graph, params, rest = nnx.split(abstract(build), nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError(f"the module must hold only parameters, got also {rest}.")
    wanted = {_published(path): (path, variable) for path, variable in nnx.to_flat_state(params)}
    given = _renamed(_unwrapped(tensors, wanted, rename), rename, ignored)
    _check(wanted, given)
    leaves = []
    for name, (path, variable) in wanted.items():
        place = sharding(name, variable.shape) if callable(sharding) else sharding
        leaves.append((path, variable.replace(_array(given[name], path[-1] == "kernel", variable.shape, dtype, place))))
    return nnx.merge(graph, nnx.from_flat_state(leaves), rest)


def abstract(build: Callable[..., Module]) -> Module:
    """A module of shapes and dtypes only, without initialised parameters. This takes a second for the U-Net of SDXL.

    All random keys that it draws are the same key. Counting them would search everything traced before, which takes a minute or
    more.

    Args:
      build: A function that makes the module, as for `load`.

    Returns:
      The module, with `jax.ShapeDtypeStruct`s as parameters. Use it with `parameter_count`, or to see what a file must hold.

    Example:
      >>> from flax import nnx
      >>> build = lambda rngs: nnx.Linear(20_000, 50_000, rngs=rngs)
      >>> print(gj.pretrained.abstract(build).kernel.shape)
      (20000, 50000)
    """
    return nnx.eval_shape(lambda: build(rngs=_OneKey()))


class _OneKey(nnx.Rngs):
    """Random keys that are all the same."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def fully_sharded(mesh: Mesh) -> Callable[[str, tuple[int, ...]], Sharding]:
    """A sharding that splits each weight over all devices of a mesh, along its largest axis that divides evenly.

    A weight without such an axis is replicated.

    Args:
      mesh: The mesh of devices, with any number of axes.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> print(tuple(gj.pretrained.fully_sharded(mesh)("kernel", (3, 3, 4, 64)).spec))
      (None, None, None, 'data')
    """

    def place(name: str, shape: tuple[int, ...]) -> Sharding:
        dividing = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
        spec: list[Any] = [None] * len(shape)
        if dividing:
            spec[max(dividing, key=lambda axis: shape[axis])] = mesh.axis_names
        return NamedSharding(mesh, PartitionSpec(*spec))

    return place


def published(module: nnx.Module) -> dict[str, Any]:
    """A module's parameters by their published names, with the published order of axes: the inverse of `load`.

    Use it to save a network that was trained further. A dense layer that was published as a convolution of one pixel has no
    axes for that pixel.

    Args:
      module: A module of Flax NNX, abstract or not.

    Returns:
      NumPy arrays, or `jax.ShapeDtypeStruct`s if the module is abstract: what a file must hold.

    Example:
      >>> from flax import nnx
      >>> from flax import nnx
      >>> import functools, pathlib, safetensors.numpy, tempfile
      >>> dense = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "dense.safetensors"
      >>> safetensors.numpy.save_file(gj.pretrained.published(dense), file)
      >>> build = functools.partial(nnx.Linear, 2, 3)
      >>> again = gj.pretrained.load(build, gj.pretrained.open_weights(file))
      >>> print(bool((again.kernel == dense.kernel).all()))
      True
    """
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        value = variable.get_value()
        if isinstance(value, jax.ShapeDtypeStruct):
            found[_published(path)] = jax.ShapeDtypeStruct(_published_shape(path, value.shape), value.dtype)
            continue
        order = ORDERS[value.ndim] if path[-1] == "kernel" else tuple(range(value.ndim))
        found[_published(path)] = np.ascontiguousarray(np.asarray(value).transpose(np.argsort(order)))
    return found


def parameter_count(module: nnx.Module) -> int:
    """The number of parameters of a module, abstract (`nnx.eval_shape`) or not.

    Args:
      module: A module of Flax NNX.

    Example:
      >>> from flax import nnx
      >>> from flax import nnx
      >>> gj.pretrained.parameter_count(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      9
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def _published(path: Sequence[Any]) -> str:
    *parents, last = path
    return ".".join(map(str, [*parents, WEIGHTS.get(str(last), last)]))


def _unwrapped(tensors: Mapping[str, Tensor], wanted: Collection[str], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The network's own weights, by the names that the network gave them."""
    kept = {}
    for name, tensor in tensors.items():
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain in kept:
            raise ValueError(f"the weight {plain} occurs twice, the second time as {name}.")
        kept[plain] = tensor
    found = Counter(prefix for name in kept for prefix in _prefixes(name) if rename(name.removeprefix(prefix)) in wanted)
    best = min(found, key=lambda prefix: (-found[prefix], len(prefix)), default="")
    others = [prefix for prefix in found if not prefix.startswith(best) and not best.startswith(prefix)]
    if others:
        places = ", ".join(sorted(prefix.removesuffix(".") for prefix in (best, *others)))
        raise ValueError(
            f"the file holds the network's weights several times, as {places}. Give one set: "
            f'{{name: tensor for name, tensor in tensors.items() if name.startswith("{best}")}}.'
        )
    if not found[best] and (whole := {start for start in SINGLE_FILE for name in kept if name.startswith(start)}):
        raise ValueError(
            f"it is a single-file checkpoint of a whole Stable Diffusion (names begin with {', '.join(sorted(whole))})"
            ", expected the weights of one network. In diffusers, StableDiffusionPipeline.from_single_file(file)"
            ".save_pretrained(directory) makes the directory that text_to_image.load reads."
        )
    beside = lambda name, tensor: not name.startswith(best) and (name.split(".")[0] in COMPANIONS or tensor.shape == ())
    return {name.removeprefix(best): tensor for name, tensor in kept.items() if not beside(name, tensor)}


def _prefixes(name: str) -> list[str]:
    """Each prefix of a name that consists of containers only."""
    parts = itertools.takewhile(CONTAINERS.__contains__, name.split(".")[:-1])
    return list(itertools.accumulate((f"{part}." for part in parts), initial=""))


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str], ignored: Collection[str]) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in ignored:
            continue
        if rename(name) in given:
            raise ValueError(f"the weight {rename(name)} occurs twice, the second time as {name}.")
        given[rename(name)] = tensor
    return given


def _check(wanted: Mapping[str, tuple[Any, Any]], given: Mapping[str, Tensor]) -> None:
    wrong = {
        name: f"{given[name].shape}, expected {_published_shape(path, variable.shape)}"
        for name, (path, variable) in wanted.items()
        if name in given and not _fits(given[name].shape, _published_shape(path, variable.shape))
    }
    faults = [
        _listed("missing", sorted(wanted.keys() - given.keys())),
        _listed("left over", sorted(given.keys() - wanted.keys())),
        _listed("of another shape", [f"{name} {shapes}" for name, shapes in wrong.items()]),
    ]
    if any(faults):
        raise ValueError(
            f"the weights are not those of this network, which has {len(wanted)}: {'; '.join(filter(None, faults))}. "
            "Check that the file belongs to this configuration."
        )


def _listed(what: str, names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what}: {', '.join(names[:most])}{more}" if names else ""


def _published_shape(path: Sequence[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    order = ORDERS[len(shape)]
    return tuple(shape[order.index(axis)] for axis in range(len(shape)))


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a shape is the expected one, or that of a convolution of one pixel for a dense layer."""
    return shape[: len(expected)] == expected and all(size == 1 for size in shape[len(expected) :])


def _array(tensor: Tensor, kernel: bool, shape: tuple[int, ...], dtype: Any, place: Sharding | None) -> jax.Array:
    order = ORDERS[len(shape)] if kernel else tuple(range(len(shape)))
    pixel = (0,) * (len(tensor.shape) - len(shape))

    def part(index: Any) -> np.ndarray:
        source = tuple(index[order.index(axis)] for axis in range(len(shape)))
        # Always a copy: with a sharding, JAX uses the array's own memory, which may be the file's.
        return tensor.read(source + pixel).transpose(order).astype(dtype, order="C")

    if place is None:
        return jnp.asarray(part((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, place, part)
