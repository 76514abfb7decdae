"""The types that all layers share.

Every process is `x_t = alpha(t) x_0 + sigma(t) eps`. The leading axis of `x` is samples. No operation reduces over it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, Float

Scalar = Array | float | int
"""A number, known or traced."""

Cond = Any
"""A condition: any pytree of `[B, ...]` leaves (labels, embeddings with a mask, both, `None`)."""

T = TypeVar("T")


def pytree(kind: type[T]) -> type[T]:
    """Register a dataclass as a pytree with all fields as children. Unflattening does not call its constructor."""
    names = tuple(field.name for field in dataclasses.fields(kind))  # pyright: ignore[reportArgumentType]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def unflatten(_: None, children: Iterable[Any]) -> T:
        made = object.__new__(kind)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(made, name, child)
        return made

    fields = lambda value: [getattr(value, name) for name in names]
    with_keys = lambda value: (list(zip(keys, fields(value), strict=True)), None)
    jax.tree_util.register_pytree_with_keys(kind, with_keys, unflatten, lambda value: (fields(value), None))
    return kind


class Replaceable:
    """The method `replace`, for the dataclasses of this module."""

    __slots__ = ()

    def replace(self: T, **changes: Any) -> T:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


@pytree
@dataclasses.dataclass(frozen=True)
class NoiseLevel(Replaceable):
    """A noise level of the process `x = alpha x_0 + sigma eps`.

    With a leading axis it is one level per sample, or a path. A path is a sequence of levels: `path[3]`, `len(path)`,
    `for level in path`. A slice of a path is a path.

    Args:
      t: The time that the network receives, as in training: 0..999, `log(sigma) / 4` or [0, 1]. `()`, `[B]` or `[steps + 1]`.
      alpha: The factor of the data, shaped as t.
      sigma: The factor of the noise, shaped as t.

    Raises:
      IndexError: From `path[place]`, if place is outside the path.

    Example:
      >>> print(gj.NoiseLevel(t=jnp.array(0.5), alpha=jnp.array(0.5), sigma=jnp.array(0.75)).ratio)
      1.5
      >>> path = gj.levels(gj.schedules.edm(), 3, gj.spacings.karras())
      >>> print(len(path), path[0].sigma, path[-1].sigma)
      4 80.0 0.0
    """

    t: Array
    alpha: Array
    sigma: Array

    @property
    def ratio(self) -> Array:
        """`sigma / alpha`, the sigma of EDM, infinite at alpha = 0. Intervals of noise levels use this quantity."""
        signal = self.alpha > 0
        return jnp.where(signal, self.sigma / jnp.where(signal, self.alpha, 1), jnp.inf)

    def __getitem__(self: T, place: Any) -> T:
        # JAX itself returns the last entry for an index outside the array.
        if isinstance(place, int) and not -len(self) <= place < len(self):  # pyright: ignore[reportArgumentType]
            raise IndexError(f"levels[{place}] is beyond a path of {len(self)} levels.")  # pyright: ignore[reportArgumentType]
        return jax.tree.map(lambda field: field[place], self)

    def __len__(self) -> int:
        return len(self.sigma)

    def __bool__(self) -> bool:
        return True

    def __iter__(self: T) -> Iterator[T]:
        return (self[i] for i in range(len(self)))  # pyright: ignore[reportArgumentType, reportIndexIssue]


@pytree
@dataclasses.dataclass(frozen=True)
class PathEnd(NoiseLevel):
    """The end of a path, for runs that start from data. `schedules.strength` and `schedules.below` make it.

    Samplers and guidances treat it as any other path. With the same keys, a run on it draws other noise than a run of the whole
    path, which may have made the data. A slice of it is a `PathEnd` too. Its fields are those of `NoiseLevel`.

    Example:
      >>> path = gj.schedules.strength(gj.levels(gj.schedules.edm(), 10, gj.spacings.karras()), 0.5)
      >>> print(type(path[2:]).__name__)
      PathEnd
    """

    def __getitem__(self, place: Any) -> NoiseLevel:
        taken = super().__getitem__(place)
        return taken if isinstance(place, slice) else NoiseLevel(**vars(taken))


@pytree
@dataclasses.dataclass(frozen=True)
class Prediction(Replaceable):
    """The prediction of a denoiser at `x`: the two terms of `x = alpha x0 + sigma eps`.

    Predictions can be added, subtracted and scaled, so a guidance formula reads as in its paper: `u + w * (c - u)`.
    `x0` and `eps` are separate fields because some methods renoise with a different `eps` than `x0` implies.

    Args:
      x0: The clean data, `[B, ...]`.
      eps: The noise, `[B, ...]`.
      variance: The learned variance of the reverse step, `[B, ...]`: where its logarithm lies between those of the small
        variance (0) and of the large variance (1). None if the network does not predict it. Arithmetic keeps that of the left
        operand.

    Example:
      >>> c = gj.Prediction(x0=jnp.ones((2, 3)), eps=jnp.zeros((2, 3)))
      >>> u = gj.Prediction(x0=jnp.zeros((2, 3)), eps=jnp.ones((2, 3)))
      >>> guided = u + jnp.array([1.0, 3.0]) * (c - u)
      >>> print(guided.x0[:, 0], guided.eps[:, 0])
      [1. 3.] [ 0. -2.]
    """

    x0: Float[Array, "b ..."]
    eps: Float[Array, "b ..."]
    variance: Float[Array, "b ..."] | None = None

    __array_ufunc__ = None  # numpy_scale * prediction goes to __rmul__

    def __add__(self, other: "Prediction") -> "Prediction":
        return Prediction(self.x0 + other.x0, self.eps + other.eps, self.variance)

    def __sub__(self, other: "Prediction") -> "Prediction":
        return Prediction(self.x0 - other.x0, self.eps - other.eps, self.variance)

    def __rmul__(self, scale: ArrayLike) -> "Prediction":
        """`scale * prediction`, with one scale, `()`, or one scale per sample, `[B]`."""
        w = jnp.asarray(scale, self.x0.dtype)
        w = w.reshape(w.shape + (1,) * (self.x0.ndim - 1)) if w.ndim == 1 else w
        return Prediction(w * self.x0, w * self.eps, self.variance)

    __mul__ = __rmul__

    def __neg__(self) -> "Prediction":
        return -1 * self


Denoiser = Callable[[Array, NoiseLevel, Cond], Prediction]
"""`(x [B, ...], level, cond) -> Prediction`. In sampling, `level` is `()`. One level per sample, `[B]`, also works."""


class Step(NamedTuple):
    """A step of the sampler.

    Args:
      number: The number of the step, counted from 0 at the start of the run. A run that continues from the `State` of another
        run continues its count.
      level: The level where the step begins.
      next: The level where the step ends.
      keys: The PRNG keys of the run, `[B]`, the same in every step. `step_keys(step)` makes keys of this step for a guidance.
      drawn: The level that `step_keys` uses, if it is not `level`. An ODE uses it to guide with the same draws at all levels.

    Example:
      >>> level, after = gj.schedules.flow()(1.0), gj.schedules.flow()(0.5)
      >>> step = gj.Step(jnp.int32(0), level, after, jax.random.split(jax.random.key(0), 4))
      >>> print(step.number, step.level.sigma, step.next.sigma, step.keys.shape)
      0 1.0 0.5 (4,)
    """

    number: Array
    level: NoiseLevel
    next: NoiseLevel
    keys: Array
    drawn: NoiseLevel | None = None


class Branches(NamedTuple):
    """One denoiser and the named conditions under which it is evaluated, in one call.

    For several networks, use a tuple of `Branches`. The first branch is the base. It is used wherever guidance is off.
    A condition may be a function. It is called with the `Step` and returns the condition of that step.

    Args:
      denoise: `(x [B, ...], level, cond) -> Prediction`.
      conds: The conditions by name, the base's first. All have one structure, with `[B, ...]` leaves.
      batched: Whether all conditions are evaluated in one batch. False evaluates them one after another, which needs less
        memory.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, y: 0 * x, predicts="x0")
      >>> two = gj.Branches(denoise, {"cond": jnp.array([3]), "uncond": jnp.array([10])})
      >>> list(two.conds), two.batched
      (['cond', 'uncond'], True)
    """

    denoise: Denoiser
    conds: dict[str, Cond]
    batched: bool = True


def _flattened(branches: Branches) -> tuple[tuple[Any, ...], tuple[tuple[str, ...], bool]]:
    return (branches.denoise, *branches.conds.values()), (tuple(branches.conds), branches.batched)


def _unflattened(static: tuple[tuple[str, ...], bool], children: tuple[Any, ...]) -> Branches:
    names, batched = static
    return Branches(children[0], dict(zip(names, children[1:], strict=True)), batched)


# JAX sorts the keys of a dictionary. This registration keeps the order of the conditions, since the first one is the base.
jax.tree_util.register_pytree_node(Branches, _flattened, _unflattened)


class Derivative(NamedTuple):
    """The derivative of a branch's x0 with respect to x, from the forward pass that made the prediction.

    Args:
      jvp: Maps a tangent of x, `[B, ...]`, to the tangent of x0.
      pullback: Maps a cotangent of x0, `[B, ...]`, to the gradient in x.
    """

    jvp: Callable[[Array], Array]
    pullback: Callable[[Array], Array]


class Context(NamedTuple):
    """The data that a guidance may read.

    Args:
      x: The samples at which all predictions are made, `[B, ...]`.
      level: The level of `x`. It is the step's, except in later evaluations of a step (Heun's corrector).
      step: The step of the sampler.
      base: The prediction of the first branch, before guidance.
      branches: The prediction of each needed branch, by name. In steps that do not want a branch, it is the base's prediction.
      derivatives: The derivatives of the branches that the guidance names in `derivatives`, by name. None stands for the base.
      space: The parameterisation that the field `x0` of the predictions holds: "x0", or another one inside `in_space`.

    Example:
      >>> def update(prediction, context):
      ...     weak = context["weak"]
      ...     return prediction + (prediction - weak)
      >>> sorted(gj.stateless(update, needs=["weak"]).needs)
      ['weak']
    """

    x: Float[Array, "b ..."]
    level: NoiseLevel
    step: Step
    base: Prediction
    branches: Mapping[str, Prediction]
    derivatives: Mapping[str | None, Derivative] = {}
    space: str = "x0"

    def __getitem__(self, name: Any) -> Any:
        """The prediction of a branch, by name."""
        return self.branches[name] if isinstance(name, str) else tuple.__getitem__(self, name)

    @property
    def next(self) -> NoiseLevel:
        """The level where the sampler's step ends."""
        return self.step.next

    def pullback(self, cotangent: Array, branch: str | None = None) -> Array:
        """The gradient of `<cotangent, x0>` with respect to x, by one backward pass.

        Args:
          cotangent: The cotangent of x0, `[B, ...]`.
          branch: The branch of x0. None is the base.
        """
        return self.derivatives[branch].pullback(cotangent.astype(self.x.dtype))

    def jvp(self, tangent: Array, branch: str | None = None) -> Array:
        """The derivative of x0 along a tangent of x.

        Args:
          tangent: The tangent of x, `[B, ...]`.
          branch: The branch of x0. None is the base.
        """
        return self.derivatives[branch].jvp(tangent.astype(self.x.dtype))


class State(NamedTuple):
    """The state of a run, which the loop carries from step to step. Another run can continue from it.

    Args:
      x: The samples at the current level, `[B, ...]`.
      memory: The memory of the sampler.
      guidance: The state of the guidance.
      evaluations: The number of network evaluations so far, per sample.
      x0: The last guided x0-prediction, `[B, ...]`.
      number: The number of steps so far.

    Example:
      >>> x, x0 = jnp.ones((1, 2)), jnp.zeros((1, 2))
      >>> state = gj.State(x, memory=(), guidance=(), evaluations=jnp.int32(0), x0=x0)
      >>> print(state._replace(x=state.x / 2).x)
      [[0.5 0.5]]
    """

    x: Float[Array, "b ..."]
    memory: Any
    guidance: Any
    evaluations: Array
    x0: Float[Array, "b ..."]
    number: Array | int = 0


class GuidedDenoiser(NamedTuple):
    """The function that a sampler calls: `denoise(state, level)` returns the guided prediction at `state.x` and the next state.

    Args:
      look: `(state, level) -> (prediction, state, context)`: also returns the context of the guidance. Samplers that weight
        samples by the branches use it.
      base: `(state, level) -> (prediction, state)`: the prediction of the base. No other branch is evaluated.
      between: `(level, next, number) -> GuidedDenoiser`: the guided denoiser of an inner step, for samplers with inner steps.
        The level where the inner step begins decides which branches are evaluated in it. Guidances and conditions draw new
        noise for each number. At number 0 they draw the noise of the run's step.
    """

    look: Callable[[State, NoiseLevel], tuple[Prediction, State, Context]]
    base: Callable[[State, NoiseLevel], tuple[Prediction, State]]
    between: "Callable[[NoiseLevel, NoiseLevel, Array], GuidedDenoiser]"

    def __call__(self, state: State, level: NoiseLevel) -> tuple[Prediction, State]:
        prediction, state, _ = self.look(state, level)
        return prediction, state


Kernel = Callable[[Prediction, NoiseLevel, NoiseLevel], tuple[Array, Scalar]]
"""`(prediction, level, next) -> mean [B, ...], deviation`: the Gaussian from which a step draws."""
