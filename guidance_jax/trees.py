"""Samples that are pytrees, as vectors `[B, D]`: for example coordinates with types, or a dictionary of parameters.

Guidances, samplers and schedules receive only the vectors, so their norms and inner products are over the whole state. If
samples are padded to one size, a mask keeps the padding at 0 in x, in the noise and in all predictions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from guidance_jax.base import Cond, GuidedDenoiser, NoiseLevel, Prediction, Scalar, State
from guidance_jax.checks.door import CLASSES, door, part
from guidance_jax.checks.kinds import TreeNetwork, class_kind
from guidance_jax.checks.trees import check_example, check_tree, check_vector
from guidance_jax.interfaces import Sampler

__all__ = ["Flat", "Padded", "flat", "on_vectors", "zero_padding"]


class Padded(NamedTuple):
    """A condition for padded samples, with the mask of their valid entries.

    Args:
      cond: The condition, without the mask.
      mask: The mask, in a form that `Flat.mask` accepts: True for a valid entry, False for padding.

    Example:
      >>> given = gj.trees.Padded(jnp.array([3, 1]), jnp.arange(4)[None] < jnp.array([[2], [4]]))
      >>> print(given.mask.sum(1))
      [2 4]
    """

    cond: Cond
    mask: Any


@dataclasses.dataclass(frozen=True)
class Flat:
    """The conversion between trees of one structure and vectors. `trees.flat` makes one.

    Args:
      structure: The structure of the tree.
      shapes: The shapes of its leaves, without the batch axis.
      points: Whether the entries are ordered point by point.

    Raises:
      ValueError: By its methods, if a tree or x does not have these shapes.

    Example:
      >>> flat = gj.trees.flat({"mean": jnp.zeros(2), "scale": jnp.zeros(())})
      >>> x = flat.ravel({"mean": jnp.array([[1.0, 2.0]]), "scale": jnp.array([3.0])})
      >>> print(flat.size, x, flat.unravel(x)["scale"])
      3 [[1. 2. 3.]] [3.]
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    points: bool = False

    @property
    def size(self) -> int:
        """The number D of entries of a sample."""
        return sum(map(math.prod, self.shapes))

    @property
    def like(self) -> Any:
        """The tree of the shapes of one sample."""
        return jax.tree.unflatten(self.structure, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes])

    def ravel(self, tree: Any) -> Float[Array, "b d"]:
        """The vectors `[B, D]` of a tree of `[B, ...]` leaves, in the promoted dtype of the leaves.

        Args:
          tree: A batch of samples with the structure and shapes of this `Flat`.

        Raises:
          ValueError: If the tree has another structure, or a leaf has another shape.
        """
        check_tree(tree, self.like)
        leaves = list(map(jnp.asarray, jax.tree.leaves(tree)))
        batch, dtype = len(leaves[0]), functools.reduce(jnp.promote_types, (leaf.dtype for leaf in leaves))
        rows = [leaf.astype(dtype).reshape(batch, *self._rows, -1) for leaf in leaves]
        return jnp.concatenate(rows, axis=-1).reshape(batch, -1)

    def unravel(self, x: Float[Array, "b d"]) -> Any:
        """The tree of `[B, ...]` leaves from vectors `[B, D]`, the inverse of `ravel`.

        Args:
          x: The vectors, `[B, D]`.

        Raises:
          ValueError: If x has another shape.
        """
        check_vector(x, self.size)
        points = math.prod(self._rows)
        ends = [sum(math.prod(shape) for shape in self.shapes[:i]) // points for i in range(1, len(self.shapes))]
        parts = jnp.split(x.reshape(len(x), *self._rows, -1), ends, axis=-1)
        return jax.tree.unflatten(
            self.structure, [leaf.reshape(len(x), *shape) for leaf, shape in zip(parts, self.shapes, strict=True)]
        )

    @property
    def _rows(self) -> tuple[int, ...]:
        """The leading axis of the order of the entries: `(N,)` if they are ordered by points, otherwise `()`."""
        return self.shapes[0][:1] if self.points else ()

    def mask(self, mask: Any) -> Bool[Array, "b d"]:
        """The mask of the valid entries of the vectors, `[B, D]`.

        Args:
          mask: A tree of the same structure, or one array for all leaves. It has the batch axis and the first axes of a leaf,
            such as `[B, N]` for points. 1 or True marks a valid entry.

        Raises:
          ValueError: If the mask has more axes than a leaf, or its axes do not match those of the leaf.

        Example:
          >>> cloud = {"position": jnp.zeros((3, 2)), "type": jnp.zeros((3, 1))}
          >>> flat = gj.trees.flat(cloud, points=True)
          >>> print(flat.mask(jnp.arange(3)[None] < jnp.array([[2]])).astype(int))
          [[1 1 1 1 1 1 0 0 0]]
        """
        masks = jax.tree.leaves(mask) if jax.tree.structure(mask) == self.structure else [mask] * len(self.shapes)

        def whole(mask: Any, shape: tuple[int, ...]) -> Array:
            mask = jnp.asarray(mask)
            shape = (len(mask), *shape)
            return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape).astype(jnp.float32)

        return self.ravel(jax.tree.unflatten(self.structure, map(whole, masks, self.shapes))) > 0

    @door()
    def network(self, network: TreeNetwork) -> Callable[[Array, Array, Cond], Array]:
        """Convert a network of trees to a network of vectors, `(x [B, D], t [B], cond) -> [B, D]`, for `gj.denoiser`.

        If the condition is `Padded`, the padding is set to 0 in the input and in the output of the network.

        Args:
          network: `(tree of [B, ...], t [B], cond) -> tree`. It receives the condition unchanged, `Padded` or not.

        Example:
          >>> flat = gj.trees.flat({"mean": jnp.zeros(2), "scale": jnp.zeros(())})
          >>> network = lambda tree, t, cond: {"mean": tree["mean"] / 2, "scale": cond}
          >>> print(flat.network(network)(jnp.ones((1, 3)), jnp.ones(1), jnp.array([7.0])))
          [[0.5 0.5 7. ]]
        """
        return on_vectors(self, network)


CLASSES[Flat] = class_kind(Flat, "use gj.trees.flat(example).")


@door()
def flat(example: Any, *, points: bool = False) -> Flat:
    """The conversion between samples that are trees and vectors `[B, D]`. It also converts networks of trees.

    `x = concatenate(leaves)`, so norms and inner products are over all leaves. Scale the leaves to similar standard deviations
    first, as for training data.

    Means and standard deviations (`rescale`) count padding as zeros. Norms and inner products do not depend on it. In training,
    padding adds no gradient.

    Args:
      example: One sample, without the batch axis: any pytree of floating arrays or `jax.ShapeDtypeStruct`s.
      points: Whether the first axis of each leaf is the points of a cloud, `[N, ...]`. The entries are then ordered point by
        point, and the noise of the valid points does not depend on the amount of padding.

    Returns:
      A `Flat`, with `ravel`, `unravel`, `mask`, `network` and `size`.

    Raises:
      TypeError: If a leaf is not an array of floating numbers.
      ValueError: If there are no leaves, or the leaves differ in the number of points.

    Example:
      >>> cloud = {"position": jnp.zeros((4, 3)), "type": jnp.zeros((4, 2))}
      >>> flat = gj.trees.flat(cloud, points=True)
      >>> mask = jnp.arange(4)[None] < jnp.array([[2], [4]])  # clouds of two and four points
      >>> network = flat.network(lambda cloud, t, given: jax.tree.map(jnp.ones_like, cloud))
      >>> cond = gj.trees.Padded(jnp.zeros(2), mask)
      >>> one = gj.branches(gj.denoiser(network, predicts="x0"), cond=cond)
      >>> path = gj.levels(gj.schedules.flow(), 3, gj.spacings.uniform())
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> sampler = gj.trees.zero_padding(gj.ddim(), flat.mask(mask))
      >>> x = gj.sample(keys, one, gj.chain(), sampler, path, (flat.size,))
      >>> print(flat.unravel(x)["type"][0].round(3))
      [[1. 1.]
       [1. 1.]
       [0. 0.]
       [0. 0.]]
    """
    check_example(example, points)
    leaves, structure = jax.tree.flatten(example)
    return Flat(structure, tuple(tuple(leaf.shape) for leaf in leaves), points)


@part()
def on_vectors(flat: Flat, network: TreeNetwork) -> Callable[[Array, Array, Cond], Array]:
    """Convert a network of trees to a network of vectors: `Flat.network`, as a function.

    If the network is a pytree, the result is a pytree with the same parameters as leaves.

    Args:
      flat: The conversion between trees and vectors.
      network: `(tree of [B, ...], t [B], cond) -> tree`.

    Returns:
      `(x [B, D], t [B], cond) -> [B, D]`.

    Raises:
      TypeError: If flat is not a `Flat`, or network is not a function.
      ValueError: When called, if x or the output of the network does not have the shapes of flat.

    Example:
      >>> flat = gj.trees.flat({"mean": jnp.zeros(2), "scale": jnp.zeros(())})
      >>> halve = lambda tree, t, cond: jax.tree.map(lambda leaf: leaf / 2, tree)
      >>> network = gj.trees.on_vectors(flat, halve)
      >>> print(network(jnp.ones((1, 3)), jnp.ones(1), None))
      [[0.5 0.5 0.5]]
    """

    def apply(x: Array, t: Array, cond: Cond) -> Array:
        if not isinstance(cond, Padded):
            return flat.ravel(network(flat.unravel(x), t, cond))
        there = flat.mask(cond.mask)
        return jnp.where(there, flat.ravel(network(flat.unravel(jnp.where(there, x, 0)), t, cond)), 0)

    return apply


@part()
def zero_padding(sampler: Sampler, mask: ArrayLike) -> Sampler:
    """A sampler for padded samples: it sets the padding to 0 before and after each step, and before each evaluation.

    `x' <- mask x'`

    x, its noise and all predictions are 0 in the padding, for deterministic and stochastic samplers.

    Args:
      sampler: The sampler whose steps are wrapped.
      mask: The mask, `[B, D]` or any shape that broadcasts to x. 1 or True marks a valid entry. `Flat.mask` makes it.

    Example:
      >>> path = gj.levels(gj.schedules.flow(), 3, gj.spacings.uniform())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> one = gj.branches(gj.denoiser(lambda x, t, cond: x, predicts="velocity"), cond=None)
      >>> sampler = gj.trees.zero_padding(gj.ddim(), jnp.array([[1, 1, 0]]))
      >>> print((gj.sample(keys, one, gj.chain(), sampler, path, (3,)) != 0).astype(int))
      [[1 1 0]]
    """
    there = jnp.asarray(mask).astype(bool)

    def zeroed(state: State) -> State:
        return state._replace(x=jnp.where(there, state.x, 0))

    def inside(denoise: GuidedDenoiser) -> GuidedDenoiser:
        return GuidedDenoiser(
            lambda state, level: denoise.look(zeroed(state), level),
            lambda state, level: denoise.base(zeroed(state), level),
            lambda *step: inside(denoise.between(*step)),
        )

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        return zeroed(sampler.step(inside(denoise), zeroed(state), level, next, keys))

    def kernel(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> tuple[Array, Scalar]:
        mean, deviation = sampler.kernel(prediction, level, next)  # pyright: ignore[reportOptionalCall]
        return mean, jnp.where(there, jnp.asarray(deviation, mean.dtype), 0)

    return Sampler(
        sampler.init, step, None if sampler.kernel is None else kernel, schedule=sampler.schedule, reversible=sampler.reversible
    )
