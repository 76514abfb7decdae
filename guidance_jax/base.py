"""The types that every layer shares, and nothing else.

Every process is `x_t = alpha(t) x_0 + sigma(t) eps`. The leading axis of `x` is samples, and nothing ever reduces over it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Float

from guidance_jax.arrays import check_range, concrete

Scalar = Array | float | int
"""A number, known or traced."""

Cond = Any
"""A condition: any pytree of `[B, ...]` leaves (labels, embeddings with a mask, both, `None`)."""


class NoiseLevel(NamedTuple):
    """A point of the process, `x = alpha x_0 + sigma eps`; with a leading axis, a whole path or one level a sample.

    `t` is what the network is told (0..999, `log(sigma) / 4`, `[0, 1]`), as it was trained.

    Example:
      >>> print(NoiseLevel(t=jnp.array(0.5), alpha=jnp.array(0.5), sigma=jnp.array(0.75)).ratio)
      1.5
    """

    t: Array
    alpha: Array
    sigma: Array

    @property
    def ratio(self) -> Array:
        """`sigma / alpha`, the sigma of EDM: infinite where alpha = 0. The measure in which intervals are given."""
        signal = self.alpha > 0
        return jnp.where(signal, self.sigma / jnp.where(signal, self.alpha, 1), jnp.inf)


class PathEnd(NoiseLevel):
    """The end of a path, where a run starts from data: `schedules.strength` and `schedules.below` make it.

    To samplers and guidances it is a path as any other. But what a run draws on it is drawn apart from what a run of the whole
    path draws by the same keys, for the data may be what that run has made. A slice of it is one too.

    Example:
      >>> path = schedules.strength(levels(schedules.edm(), 10, spacings.karras()), 0.5)
      >>> print(type(jax.tree.map(lambda field: field[2:], path)).__name__)
      PathEnd
    """

    __slots__ = ()


class Schedule(NamedTuple):
    """A noise schedule: the network's time `t` to a `NoiseLevel`, `schedule(t)`, and back from `sigma / alpha`.

    Raises:
      ValueError: when called with a known time that is not finite, or far outside of `t_min..t_max`, as a sigma may be; `at`
        takes any ratio.

    Example:
      >>> straight = Schedule(lambda t: (1 - t, t), lambda ratio: ratio / (1 + ratio), t_min=0.0, t_max=1.0)
      >>> print(straight(0.75).ratio, straight.at(3.0).t)
      3.0 0.75
    """

    alpha_sigma: Callable[[Array], tuple[Array, Array]]
    """`t -> (alpha, sigma)`, of any shape."""
    inverse: Callable[[Array], Array]
    """`sigma / alpha -> t`."""
    t_min: Scalar
    """The time of least noise."""
    t_max: Scalar
    """The time of most noise."""
    steps: int | None = None
    """The number of training steps of a discrete schedule, whose `t` are 0..steps - 1; None if continuous."""
    told: Callable[[Array], Array] | None = None
    """What the network is told at t, where that is not t itself: under a `shift`."""

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        check_range(t, "the schedule's time")
        if concrete((t, self.t_min, self.t_max)):
            times, least, most = map(np.asarray, (t, self.t_min, self.t_max))
            far = (times < least - (most - least) / 2) | (times > most + (most - least) / 2)
            if far.any():
                raise ValueError(
                    f"the time {times[far].flat[0]:g} is far outside of this schedule, {least:g} to {most:g}; a level by its "
                    "sigma / alpha is schedule.at(ratio)."
                )
        return self._level(t)

    def _level(self, t: ArrayLike) -> NoiseLevel:
        t = jnp.asarray(t, jnp.result_type(float))
        return NoiseLevel(t if self.told is None else self.told(t), *self.alpha_sigma(t))

    def at(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which `sigma / alpha` is `ratio`.

        Raises:
          ValueError: if ratio is known and negative or NaN.
        """
        check_range(ratio, "the ratio sigma / alpha", 0, np.inf)
        return self._level(self.inverse(jnp.asarray(ratio, jnp.result_type(float))))


class Prediction(NamedTuple):
    """What a denoiser says of `x`: both halves of `x = alpha x0 + sigma eps`, each `[B, ...]`.

    `eps` stays separate since some methods renoise with another one than `x0` implies. `variance` is there for networks that
    learn the variance of the reverse step: where its logarithm lies between the small one's (0) and the large one's (1).

    Example:
      >>> prediction, level = Prediction(x0=jnp.ones((1, 2)), eps=jnp.zeros((1, 2))), schedules.cosine()(0.5)
      >>> print((level.alpha * prediction.x0 + level.sigma * prediction.eps).round(3))
      [[0.707 0.707]]
    """

    x0: Float[Array, "b ..."]
    eps: Float[Array, "b ..."]
    variance: Float[Array, "b ..."] | None = None


Denoiser = Callable[[Array, NoiseLevel, Cond], Prediction]
"""`(x [B, ...], level, cond) -> Prediction`. `level` is scalar in sampling; one level a sample, `[B]`, also works."""


class Step(NamedTuple):
    """A step of the sampler.

    Example:
      >>> level, after = schedules.flow()(1.0), schedules.flow()(0.5)
      >>> step = Step(jnp.int32(0), level, after, jax.random.split(jax.random.key(0), 4))
      >>> print(step.number, step.level.sigma, step.next.sigma, step.keys.shape)
      0 1.0 0.5 (4,)
    """

    number: Array
    """Counted from 0 at the start of the run, wherever among the noise levels that is; a run that goes on from the `State` of
    another counts on."""
    level: NoiseLevel
    """The level at which it begins."""
    next: NoiseLevel
    """The level at which it ends."""
    keys: Array
    """The run's PRNG keys, `[B]`, the same in every step: `step_keys(step)` makes keys of this step for a guidance."""
    drawn: NoiseLevel | None = None
    """The level whose noise `step_keys` draws, where that is not `level`: an ODE is guided by the same draws everywhere."""


class Branches(NamedTuple):
    """One denoiser and the named conditions it is asked about; evaluated together, in one call.

    Where several networks take part, a tuple of `Branches`. The first branch of all is the base: what is sampled where
    nothing guides. A condition that is a function is called with the `Step` and gives that step's condition.

    Example:
      >>> two = Branches(denoiser(lambda x, t, y: 0 * x, predicts="x0"), {"cond": jnp.array([3]), "uncond": jnp.array([10])})
      >>> list(two.conds), two.batched
      (['cond', 'uncond'], True)
    """

    denoise: Denoiser
    """`(x [B, ...], level, cond) -> Prediction`."""
    conds: dict[str, Cond]
    """By name, the base's first; all of one structure, their leaves `[B, ...]`."""
    batched: bool = True
    """False: one condition after another, for networks that do not fit into memory twice."""


class Context(NamedTuple):
    """All that a guidance may read.

    Example:
      >>> def update(prediction, context):
      ...     weak = context.branches["weak"]
      ...     return prediction._replace(x0=2 * prediction.x0 - weak.x0, eps=2 * prediction.eps - weak.eps)
      >>> sorted(stateless(update, needs=["weak"]).needs)
      ['weak']
    """

    x: Float[Array, "b ..."]
    """Where all the predictions are made."""
    level: NoiseLevel
    """The level of `x`: the step's, but for the later evaluations of a step (Heun's corrector)."""
    step: Step
    """The sampler's step."""
    base: Prediction
    """The first branch's prediction, as the network made it."""
    branches: dict[str, Prediction]
    """The prediction of each branch that was asked for; in steps that did not want it, the base's stands in its place."""
    pullback: Callable[[Array], Array] | None = None
    """A cotangent of the base's x0, `[B, ...]`, to its gradient in x, by the one forward pass that gave the base; there for
    guidances that ask for it."""
    space: str = "x0"
    """What stands in the x0 of the predictions: another parameterisation inside of `in_space`."""

    @property
    def next(self) -> NoiseLevel:
        """The level at which the sampler's step ends."""
        return self.step.next


class Guidance(NamedTuple):
    """A pair of pure functions that turns branches into the one prediction that the sampler uses.

    `update(prediction, state, context)` receives what earlier parts of a chain made of the base prediction. A source
    adds to it, a shaper changes it; neither may change it where no branch differs from the base.

    Example:
      >>> update = lambda prediction, state, context: (prediction._replace(x0=prediction.x0 / 2), state)
      >>> halve = Guidance(frozenset(), lambda x: (), update)
      >>> sorted(chain(halve, cfg(2.0)).needs)
      ['cond', 'uncond']
    """

    needs: frozenset[str]
    """The names of the branches that `update` reads, beside the base."""
    init: Callable[[Array], Any]
    """`x [B, ...] -> ` what it remembers at the start of a run: any pytree, `()` for nothing."""
    update: Callable[[Prediction, Any, Context], tuple[Prediction, Any]]
    wants: Callable[[Any, Step], dict[str, Any]] | None = None
    """`(state, step) -> {name: True, or a boolean scalar}`: a branch that is not wanted in this step is not evaluated. None:
    every branch, always."""
    pullback: bool = False
    """Whether `update` takes gradients through the base's prediction."""


class State(NamedTuple):
    """What the loop carries from step to step, and what a run can go on from.

    Example:
      >>> state = State(jnp.ones((1, 2)), memory=(), guidance=(), evaluations=jnp.int32(0), x0=jnp.zeros((1, 2)))
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
    """The base's prediction alone, guided by nothing: no other branch is evaluated."""

    def __call__(self, state: State, level: NoiseLevel) -> tuple[Prediction, State]:
        prediction, state, _ = self.look(state, level)
        return prediction, state


Kernel = Callable[[Prediction, NoiseLevel, NoiseLevel], tuple[Array, Scalar]]
"""`(prediction, level, next) -> mean [B, ...], deviation`: a step that is one draw from a Gaussian."""


class Sampler(NamedTuple):
    """A pair of pure functions that goes from one noise level to the next.

    `step(denoise, state, level, next, keys)` moves `state.x` from `level` to `next`; `keys` holds one PRNG key a sample.
    It calls `denoise` as often as it needs, passing on the state that each call returns. Every leaf of what `init(x)` makes is
    `[B, ...]`, a row a sample, or a scalar.

    Example:
      >>> def step(denoise, state, level, next, keys):
      ...     prediction, state = denoise(state, level)
      ...     return state._replace(x=next.alpha * prediction.x0 + next.sigma * prediction.eps)
      >>> path, keys = levels(schedules.flow(), 2, spacings.uniform()), jax.random.split(jax.random.key(0), 1)
      >>> one = branches(denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0"), cond=None)
      >>> print(sample(keys, one, chain(), Sampler(lambda x: (), step), path, (2,)))
      [[3. 3.]]
    """

    init: Callable[[Array], Any]
    step: Callable[[GuidedDenoiser, State, NoiseLevel, NoiseLevel, jax.Array], State]
    kernel: Kernel | None = None
    """The Gaussian of a step, of samplers whose step is one evaluation and one draw: its deviation, `()` or `[B, ...]`, is 0
    where nothing is drawn."""
    schedule: Schedule | None = None
    """That of the run's levels, of samplers that visit other levels than these."""
    reversible: bool = False
    """Whether `step` also goes from less noise to more, and so can be run from data to noise."""
