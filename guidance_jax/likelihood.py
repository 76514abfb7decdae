"""The exact likelihood of data under a model's probability-flow ODE, guided or not."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from typing_extensions import TypeAliasType

from guidance_jax.base import Branches, Cond, NoiseLevel, Prediction, State, Step
from guidance_jax.checks.door import door
from guidance_jax.checks.kinds import Count, Keys, Positive, Samples
from guidance_jax.checks.likelihood import (
    ONE_BY_ONE,
    SHAPE,
    check_data,
    check_diffrax,
    check_ode,
    check_probes,
)
from guidance_jax.checks.traced import all_finite
from guidance_jax.guided import Networks, guide
from guidance_jax.interfaces import Guidance
from guidance_jax.programs.compiled import compiled
from guidance_jax.programs.parts import Same
from guidance_jax.schedules.schedule import Schedule

__all__ = ["Encoding", "bits_per_dimension", "encode", "log_likelihood"]


Shape = TypeAliasType("Shape", Annotated[Sequence[int], SHAPE])
"""The shape of one sample."""


class Carried(NamedTuple):
    """What is solved for, of one sample."""

    u: Array
    volume: Array
    """The integral of the divergence."""
    poison: Array
    """Above 0 once a slope was not finite: the solver took 0 for it, so that the others need not wait, and the end is NaN."""


class Encoding(NamedTuple):
    """Where the ODE takes data, and what it says of them.

    Example:
      >>> one = gj.branches(gj.denoiser(lambda x, t, cond: 0 * x, predicts="x0"), cond=None)
      >>> found = gj.likelihood.encode(one, gj.chain(), jnp.ones((1, 2)), gj.schedules.edm(sigma_min=1.0))
      >>> print(found.log_likelihood.round(2), found.latent.round(0))
      [-2.84] [[80. 80.]]
    """

    log_likelihood: Float[Array, "b"]
    """In nats, of x as it was given."""
    latent: Float[Array, "b ..."]
    """x at the schedule's most noise: a deterministic sampler that starts there comes back."""
    steps: Float[Array, "b"] | Any
    """The solver's steps, rejected ones included, `[B]`."""


@door()
def log_likelihood(
    branches: Networks,
    guidance: Guidance,
    x: Samples,
    schedule: Schedule,
    *,
    keys: Keys | None = None,
    probes: Count | None = None,
    tolerance: Positive = 1e-5,
    solver: Any = None,
    max_steps: Count = 4096,
) -> Array:
    """The log-density of data under what a deterministic sampler of infinitely many steps draws.

    With `u = x / sqrt(alpha^2 + sigma^2)` and `angle = arctan(sigma / alpha)` every schedule's probability-flow ODE is
    `du / d angle = v = cos(angle) eps - sin(angle) x0`, and
    `log p(x) = log N(u_max; 0, sin(angle_max)^2 I) + integral of div v d angle - D/2 log(alpha^2 + sigma^2)`.

    x is taken for what stands at the schedule's `t_min`; from there diffrax solves up to `t_max`. Each sample has steps of its
    own, so no sample depends on its neighbours, and what guidance does at an interval's bounds is met to the tolerance.

    This is the density of the samples and not of the data: a run that starts from N(0, sigma^2) at a finite sigma / alpha keeps
    a bias of order `alpha / sigma`, none from infinity (`flow`). Nor does CFG sample `p(x)^(1 - w) p(x | y)^w`.

    Samples are solved one by one (by `jax.vmap`), each with its own rows of the conditions. What else is one per sample, such
    as scales `[B]` or a classifier's labels, has to go the same way: `jax.vmap` this function over them, with batches of one.
    A sample that meets NaN, in x, in the network or of a label outside, is NaN, alone.

    Args:
      branches: What `gj.branches(...)` made, or a tuple of those. No condition may be drawn anew in every step.
      guidance: One that remembers nothing; `chain()` for none. One that draws sees the same draws at every level.
      x: The data, `[B, ...]`.
      schedule: That of the network.
      keys: `[B]` PRNG keys, one per sample, for the probes.
      probes: None takes the exact divergence, by D derivatives of the model at once, D the size of a sample. A number takes
        Hutchinson's estimate of it by as many random signs: the result is random, and right on average.
      tolerance: That of each step of the solver, in u and in the log-density, relative and absolute.
      solver: One of diffrax's; `diffrax.Tsit5()` if None. `Dopri8` pays for small tolerances, in float64.
      max_steps: The largest number of steps for a sample.

    Returns:
      `[B]`, in nats.

    Raises:
      ImportError: If diffrax is not installed.
      ValueError: If the guidance remembers something, a condition is drawn anew in every step, probes come without keys, the
        arguments do not fit each other, or within `jax.shard_map`, unless its `check_vma` is False.
      RuntimeError: While it runs, if a sample needs more than `max_steps`, or the guidance renoises with another eps than its
        x0 implies (CFG++), so that its small steps have no ODE for a limit.

    Example:
      >>> mixture = gj.oracles.GaussianMixture(jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.arange(2))
      >>> labels = jnp.array([1, 1])
      >>> two = gj.branches(mixture.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
      >>> nats = gj.log_likelihood(two, gj.cfg(1.0), jnp.array([[2.0], [3.0]]), gj.schedules.flow())
      >>> [f"{value:.2f}" for value in nats]
      ['-0.92', '-1.42']

    Reference: Song et al. 2021, arXiv:2011.13456, appendix D.2; Grathwohl et al. 2018, arXiv:1810.01367, equation 8.
    """
    asked = {"keys": keys, "probes": probes, "tolerance": tolerance, "solver": solver, "max_steps": max_steps}
    return encode(branches, guidance, x, schedule, **asked).log_likelihood


@door()
def encode(
    branches: Networks,
    guidance: Guidance,
    x: Samples,
    schedule: Schedule,
    *,
    keys: Keys | None = None,
    probes: Count | None = None,
    tolerance: Positive = 1e-5,
    solver: Any = None,
    max_steps: Count = 4096,
) -> Encoding:
    """`log_likelihood`, but for what it returns: the latents too, and how many steps they took.

    `du / d angle = cos(angle) eps - sin(angle) x0`, `u = x / sqrt(alpha^2 + sigma^2)`, from the data to the most noise.

    Args:
      The same as of `log_likelihood`.

    Returns:
      An `Encoding`.

    Raises:
      The same as of `log_likelihood`.

    Example:
      >>> normal = gj.oracles.GaussianMixture(jnp.zeros((1, 2)), jnp.eye(2)[None], jnp.ones(1), jnp.zeros(1, int))
      >>> one = gj.branches(normal.denoise, cond=jnp.array([0]))
      >>> latent = gj.likelihood.encode(one, gj.chain(), jnp.array([[1.0, -2.0]]), gj.schedules.edm()).latent
      >>> print(latent.round(0))
      [[  80. -160.]]

    Reference: Song et al. 2021, arXiv:2011.13456, section 4.3.
    """
    check_diffrax()
    check_probes(probes, keys)
    given = jax.random.split(jax.random.key(0, impl="threefry2x32"), max(1, len(x))) if keys is None else keys
    try:
        networks, like = check_data(branches, guidance, x, schedule, given)
        plan = Plan(probes, max_steps, None if solver is None else Same(solver), like.dtype)
        model = Model(networks, guidance, schedule, schedule(schedule.t_min), schedule(schedule.t_max))
        return compiled(_encoded, plan, model, x, given, tolerance)
    except (ValueError, TypeError) as error:
        if len(x) > 1:
            error.add_note(ONE_BY_ONE)
        raise


@door()
def bits_per_dimension(log_likelihood: Array, shape: Shape, *, width: Positive = 2 / 256) -> Array:
    """A log-likelihood of discrete data, dequantised, in the unit that papers compare.

    `-(log p(x) + D log width) / (D log 2)`: the density times the volume of a sample's cell.

    Args:
      log_likelihood: In nats, `[B]`, of data to which uniform noise of `width` was added.
      shape: That of one sample.
      width: The distance between two values of the data. The default is that of 8-bit images in [-1, 1].

    Returns:
      `[B]`.

    Raises:
      ValueError: If width is not positive.

    Example:
      >>> print(gj.bits_per_dimension(jnp.array([28 * 28 * jnp.log(1 / 2)]), (28, 28, 1)))
      [8.]

    Reference: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    size = math.prod(shape)
    return -(log_likelihood / size + jnp.log(width)) / math.log(2)


class Plan(NamedTuple):
    """What of a likelihood is static."""

    probes: int | None
    max_steps: int
    solver: Same | None
    dtype: Any


class Model(NamedTuple):
    """What the ODE is of."""

    networks: tuple[Branches, ...]
    guidance: Guidance
    schedule: Schedule
    low: NoiseLevel
    """The schedule's least noise, where the data stand."""
    high: NoiseLevel


def _encoded(plan: Plan, model: Model, x: Array, keys: Array, tolerance: Any) -> Encoding:
    """Each sample by itself, in a batch of one."""

    def one(x: Array, conds: list[dict[str, Cond]], key: Array) -> Encoding:
        alone = [jax.tree.map(lambda leaf: leaf[None], cond) for cond in conds]
        networks = tuple(n._replace(conds=cond) for n, cond in zip(model.networks, alone, strict=True))
        return _solved(plan, model._replace(networks=networks), x, key, tolerance)

    return jax.vmap(one)(x.astype(plan.dtype), [network.conds for network in model.networks], keys)


def _solved(plan: Plan, model: Model, x: Array, key: Array, tolerance: Any) -> Encoding:
    """The encoding of one sample."""
    import diffrax

    low, high = model.low, model.high
    start, end = (jnp.arctan2(level.sigma, level.alpha).astype(x.dtype) for level in (low, high))
    signs = _directions(key, x, plan.probes)

    def change(angle: Array, carried: Carried, _: Any) -> Carried:
        v, derivative = jax.linearize(lambda u: _slope(model, angle, u, key), carried.u)
        volume = (signs * jax.vmap(derivative)(signs)).sum()
        known = all_finite(v) & all_finite(volume)
        return Carried(jnp.where(known, v, 0), jnp.where(known, volume, 0), jnp.where(known, 0, 1).astype(x.dtype))

    u = x / _size(low).astype(x.dtype)
    u = check_ode(u, *_predicted(model, (start + end) / 2, u, key))
    known = all_finite(u)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(change),  # pyright: ignore[reportArgumentType]
        diffrax.Tsit5() if plan.solver is None else plan.solver.value,
        start,
        end,
        None,
        Carried(jnp.where(known, u, 0), jnp.zeros((), x.dtype), jnp.where(known, 0, 1).astype(x.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance, norm=_largest),
        max_steps=plan.max_steps,
    )
    last, volume, poison = (leaf[-1] for leaf in solution.ys)  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    last = jnp.where(poison > 0, jnp.nan, last)
    z = last / jnp.sin(end)
    log_normal = -0.5 * (z**2).sum() - x.size * (0.5 * math.log(2 * math.pi) + jnp.log(jnp.sin(end)))
    log_p = log_normal + volume - x.size * jnp.log(_size(low).astype(x.dtype))
    return Encoding(log_p, last * _size(high).astype(x.dtype), solution.stats["num_steps"])


def _slope(model: Model, angle: Array, u: Array, key: Array) -> Array:
    """`v = cos(angle) eps - sin(angle) x0`."""
    prediction, _, level = _predicted(model, angle, u, key)
    return ((level.alpha * prediction.eps - level.sigma * prediction.x0) / _size(level))[0]


def _predicted(model: Model, angle: Array, u: Array, key: Array) -> tuple[Prediction, Array, NoiseLevel]:
    """The guided prediction of one sample, in a batch of one; its x, and the level of an angle."""
    signal = jnp.cos(angle) > 0
    ratio = jnp.where(signal, jnp.sin(angle) / jnp.where(signal, jnp.cos(angle), 1), jnp.inf)
    ratio = jnp.clip(ratio, model.low.ratio.astype(ratio.dtype), model.high.ratio.astype(ratio.dtype))
    level = jax.tree.map(lambda field: field.astype(u.dtype), model.schedule.at(ratio))
    x = (_size(level) * u)[None]
    denoise = guide(model.networks, model.guidance, Step(jnp.int32(0), level, level, key[None], model.low))
    prediction, _ = denoise(State(x, (), model.guidance.init(x), jnp.int32(0), jnp.zeros_like(x)), level)
    return prediction, x, level


def _directions(key: Array, x: Array, probes: int | None) -> Array:
    """`d_i`, `[n, ...]`, such that `sum_i d_i d_i^T` is the identity, or is so on average."""
    if probes is None:
        return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return jax.random.rademacher(key, (probes, *x.shape), x.dtype) / jnp.sqrt(jnp.asarray(probes, x.dtype))


def _size(level: NoiseLevel) -> Array:
    return jnp.sqrt(level.alpha**2 + level.sigma**2)


def _largest(error: Carried) -> Array:
    """The error of u, by its root mean square, or that of the log-density: whichever is larger."""
    return jnp.maximum(jnp.sqrt((error.u**2).mean()), jnp.abs(error.volume))
