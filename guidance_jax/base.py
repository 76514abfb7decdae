"""The types that every layer shares, and nothing else.

Every process is `x_t = alpha(t) x_0 + sigma(t) eps`. The leading axis of `x` is samples, and nothing ever reduces over it.
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
    """Registers a dataclass whose fields are all children. Unflattening checks and computes nothing."""
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
    """What all dataclasses here share."""

    __slots__ = ()

    def replace(self: T, **changes: Any) -> T:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


@pytree
@dataclasses.dataclass(frozen=True)
class NoiseLevel(Replaceable):
    """A point of the process, `x = alpha x_0 + sigma eps`.

    With a leading axis it is one level per sample, or a path: a sequence of levels, `path[3]`, `len(path)`,
    `for level in path`. A slice of a path is a path.

    Args:
      t: What the network receives (0..999, `log(sigma) / 4`, `[0, 1]`), as in training.
      alpha: The factor of the data.
      sigma: The factor of the noise.

    Raises:
      IndexError: From `path[place]`, if the place is beyond the path.

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
        """`sigma / alpha`, the sigma of EDM: infinite where alpha = 0. Intervals are given in this unit."""
        signal = self.alpha > 0
        return jnp.where(signal, self.sigma / jnp.where(signal, self.alpha, 1), jnp.inf)

    def __getitem__(self: T, place: Any) -> T:
        # JAX takes the last entry for a place beyond it.
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
    """The end of a path, where a run starts from data: `schedules.strength` and `schedules.below` make it.

    Samplers and guidances treat it as any other path. What a run draws on it differs from what a run of the whole path
    draws with the same keys, since that run may have made the data. A slice of it is one too.

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
    """What a denoiser predicts at `x`: both parts of `x = alpha x0 + sigma eps`, each `[B, ...]`.

    Predictions add, subtract and scale, so a guidance formula reads as in its paper: `u + w * (c - u)`.
    `x0` and `eps` are kept apart because some methods renoise with a different `eps` than `x0` implies.

    Args:
      x0: The clean data.
      eps: The noise.
      variance: For networks that learn the variance of the reverse step: where its logarithm lies between that of the
        small variance (0) and that of the large one (1). Arithmetic keeps the left operand's.

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
        """`scale * prediction`, with one scale for all samples, `()`, or one per sample, `[B]`."""
        w = jnp.asarray(scale, self.x0.dtype)
        w = w.reshape(w.shape + (1,) * (self.x0.ndim - 1)) if w.ndim == 1 else w
        return Prediction(w * self.x0, w * self.eps, self.variance)

    __mul__ = __rmul__

    def __neg__(self) -> "Prediction":
        return -1 * self


Denoiser = Callable[[Array, NoiseLevel, Cond], Prediction]
"""`(x [B, ...], level, cond) -> Prediction`. `level` is scalar in sampling; one level per sample, `[B]`, also works."""


class Step(NamedTuple):
    """A step of the sampler.

    Example:
      >>> level, after = gj.schedules.flow()(1.0), gj.schedules.flow()(0.5)
      >>> step = gj.Step(jnp.int32(0), level, after, jax.random.split(jax.random.key(0), 4))
      >>> print(step.number, step.level.sigma, step.next.sigma, step.keys.shape)
      0 1.0 0.5 (4,)
    """

    number: Array
    """Counted from 0 at the start of the run, wherever among the noise levels that is. A run that goes on from the `State` of
    another counts on."""
    level: NoiseLevel
    """The level at which it begins."""
    next: NoiseLevel
    """The level at which it ends."""
    keys: Array
    """The run's PRNG keys, `[B]`, the same in every step: `step_keys(step)` makes keys of this step for a guidance."""
    drawn: NoiseLevel | None = None
    """The level whose noise `step_keys` draws, if it is not `level`: an ODE is guided by the same draws everywhere."""


class Branches(NamedTuple):
    """One denoiser and the named conditions it is evaluated under, together, in one call.

    For several networks, use a tuple of `Branches`. The first branch is the base. It is used wherever guidance is off.
    A condition that is a function is called with the `Step` and returns the condition of that step.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, y: 0 * x, predicts="x0")
      >>> two = gj.Branches(denoise, {"cond": jnp.array([3]), "uncond": jnp.array([10])})
      >>> list(two.conds), two.batched
      (['cond', 'uncond'], True)
    """

    denoise: Denoiser
    """`(x [B, ...], level, cond) -> Prediction`."""
    conds: dict[str, Cond]
    """By name, the base's first; all of one structure, their leaves `[B, ...]`."""
    batched: bool = True
    """False: one condition after another, for networks that do not fit into memory twice."""


def _flattened(branches: Branches) -> tuple[tuple[Any, ...], tuple[tuple[str, ...], bool]]:
    return (branches.denoise, *branches.conds.values()), (tuple(branches.conds), branches.batched)


def _unflattened(static: tuple[tuple[str, ...], bool], children: tuple[Any, ...]) -> Branches:
    names, batched = static
    return Branches(children[0], dict(zip(names, children[1:], strict=True)), batched)


# As data the conditions keep their order, of which the base is the first: JAX sorts the keys of a dictionary.
jax.tree_util.register_pytree_node(Branches, _flattened, _unflattened)


class Derivative(NamedTuple):
    """The derivative of a branch's x0 in x, from the forward pass that made the prediction."""

    jvp: Callable[[Array], Array]
    """A tangent of x, `[B, ...]`, to that of x0."""
    pullback: Callable[[Array], Array]
    """A cotangent of x0, `[B, ...]`, to its gradient in x."""


class Context(NamedTuple):
    """All that a guidance may read.

    Example:
      >>> def update(prediction, context):
      ...     weak = context["weak"]
      ...     return prediction + (prediction - weak)
      >>> sorted(gj.stateless(update, needs=["weak"]).needs)
      ['weak']
    """

    x: Float[Array, "b ..."]
    """Where all the predictions are made."""
    level: NoiseLevel
    """The level of `x`: the step's, except in the later evaluations of a step (Heun's corrector)."""
    step: Step
    """The sampler's step."""
    base: Prediction
    """The first branch's prediction, as the network made it."""
    branches: Mapping[str, Prediction]
    """The prediction of each branch that a guidance needs. In steps that do not want it, this is the base's."""
    derivatives: Mapping[str | None, Derivative] = {}
    """By the name of the branch, None for the base: of those that a guidance asks for."""
    space: str = "x0"
    """What the x0 of the predictions holds: another parameterisation inside `in_space`."""

    def __getitem__(self, name: Any) -> Any:
        """The prediction of a branch, by name."""
        return self.branches[name] if isinstance(name, str) else tuple.__getitem__(self, name)

    @property
    def next(self) -> NoiseLevel:
        """The level at which the sampler's step ends."""
        return self.step.next

    def pullback(self, cotangent: Array, branch: str | None = None) -> Array:
        """The gradient in x of `<cotangent, x0>`: one backward pass.

        Args:
          cotangent: Shaped as x, `[B, ...]`.
          branch: The branch whose x0 it is; None for the base.
        """
        return self.derivatives[branch].pullback(cotangent.astype(self.x.dtype))

    def jvp(self, tangent: Array, branch: str | None = None) -> Array:
        """The derivative of x0 along a tangent of x.

        Args:
          tangent: Shaped as x, `[B, ...]`.
          branch: The branch whose x0 it is; None for the base.
        """
        return self.derivatives[branch].jvp(tangent.astype(self.x.dtype))


class State(NamedTuple):
    """What the loop carries from step to step, and what a run can go on from.

    Example:
      >>> state = gj.State(jnp.ones((1, 2)), memory=(), guidance=(), evaluations=jnp.int32(0), x0=jnp.zeros((1, 2)))
      >>> print(state._replace(x=state.x / 2).x)
      [[0.5 0.5]]
    """

    x: Float[Array, "b ..."]
    """The samples, at the level that the run has come to."""
    memory: Any
    """The sampler's."""
    guidance: Any
    """The guidance's."""
    evaluations: Array
    """The number of network evaluations so far, per sample."""
    x0: Float[Array, "b ..."]
    """The last x0-prediction, guided."""
    number: Array | int = 0
    """The number of steps so far."""


class GuidedDenoiser(NamedTuple):
    """What a sampler calls: `denoise(state, level)` gives the guided prediction at `state.x`, which stands at that level, and
    the state after it."""

    look: Callable[[State, NoiseLevel], tuple[Prediction, State, Context]]
    """The same, and all that the guidance read: for samplers that weigh their samples by the branches."""
    base: Callable[[State, NoiseLevel], tuple[Prediction, State]]
    """The base's prediction alone, without guidance: no other branch is evaluated."""
    between: "Callable[[NoiseLevel, NoiseLevel], GuidedDenoiser]"
    """The guided denoiser of another step, `(level, next)`, for samplers that take steps of their own. The level at which that
    step begins decides what is guided in it."""

    def __call__(self, state: State, level: NoiseLevel) -> tuple[Prediction, State]:
        prediction, state, _ = self.look(state, level)
        return prediction, state


Kernel = Callable[[Prediction, NoiseLevel, NoiseLevel], tuple[Array, Scalar]]
"""`(prediction, level, next) -> mean [B, ...], deviation`: a step that is one draw from a Gaussian."""
