"""The exact likelihood of data under a model's probability-flow ODE, with or without guidance."""

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
    """The variables of the ODE for one sample.

    Args:
      u: The sample, `x / sqrt(alpha^2 + sigma^2)`, `[...]`.
      volume: The integral of the divergence, `()`.
      poison: Above 0 if a slope was not finite, `()`. Such a slope is replaced by 0, so that the other samples need no extra
        steps, and the result is NaN.
    """

    u: Array
    volume: Array
    poison: Array


class Encoding(NamedTuple):
    """The latents and the log-likelihoods of data.

    Args:
      log_likelihood: `[B]`, in nats, for x in its original units.
      latent: `[B, ...]`, x at the maximum noise of the schedule. A deterministic sampler from here returns to the data.
      steps: `[B]`, the number of steps of the solver, including rejected ones.

    Example:
      >>> latent, steps = 80 * jnp.ones((1, 2)), jnp.array([9])
      >>> found = gj.likelihood.Encoding(jnp.array([-2.5]), latent, steps)
      >>> print(found.log_likelihood, found.latent)
      [-2.5] [[80. 80.]]
    """

    log_likelihood: Float[Array, "b"]
    latent: Float[Array, "b ..."]
    steps: Float[Array, "b"] | Any


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
    """The log-density of data under the distribution that a deterministic sampler with infinitely many steps draws from.

    With `u = x / sqrt(alpha^2 + sigma^2)` and `angle = arctan(sigma / alpha)`, the probability-flow ODE of every schedule is
    `du / d angle = v = cos(angle) eps - sin(angle) x0`, and
    `log p(x) = log N(u_max; 0, sin(angle_max)^2 I) + integral of div v d angle - D/2 log(alpha^2 + sigma^2)`.

    x is the sample at the schedule's `t_min`, and diffrax solves the ODE from there to `t_max`. Each sample has its own steps,
    so no sample depends on another one. At the bounds of a guidance interval, the solver keeps the tolerance.

    This is the density of the samples, not of the data. A run that starts from N(0, sigma^2) at a finite sigma / alpha has a
    bias of order `alpha / sigma`; a run from infinity (`flow`) has none. CFG does not sample `p(x)^(1 - w) p(x | y)^w` either.

    Samples are solved one by one with `jax.vmap`, each with its own rows of the conditions. For other arrays with one row per
    sample, such as scales `[B]` or a classifier's labels, use `jax.vmap` over this function, with batches of one. If x or the
    network's output is NaN, or a label is out of range, the result is NaN for that sample alone.

    Args:
      branches: The result of `gj.branches(...)`, or a tuple of these. No condition may be a function of the step.
      guidance: A guidance without memory; `chain()` for none. A guidance that draws has the same draws at every level.
      x: The data, `[B, ...]`.
      schedule: The schedule of the network.
      keys: `[B]` PRNG keys, one per sample, for the probes.
      probes: None computes the exact divergence, with D derivatives of the model at once, for samples of size D. A number uses
        Hutchinson's unbiased estimate of the divergence with this number of random sign vectors.
      tolerance: The tolerance of each step of the solver, in u and in the log-density, relative and absolute.
      solver: A solver of diffrax; `diffrax.Tsit5()` if None. For small tolerances in float64, `diffrax.Dopri8()` is faster.
      max_steps: The maximum number of steps per sample.

    Returns:
      `[B]`, in nats.

    Raises:
      ImportError: If diffrax is not installed.
      ValueError: If the guidance has a memory, a condition is a function of the step, probes have no keys, or the arguments do
        not match each other. Inside `jax.shard_map`, unless its `check_vma` is False.
      RuntimeError: When the program runs, if a sample needs more than `max_steps`. If the eps of the guidance differs from the
        eps that its x0 implies (CFG++), because small steps then do not converge to an ODE.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + cond, predicts="velocity")
      >>> two = gj.branches(denoise, cond=jnp.ones((2, 1)), uncond=jnp.zeros((2, 1)))
      >>> x = jnp.array([[-3.0], [-4.0]])
      >>> nats = gj.log_likelihood(two, gj.cfg(3.0), x, gj.schedules.flow())  # N(-3, 1)
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
    """As `log_likelihood`, but also returns the latents and the number of steps.

    `du / d angle = cos(angle) eps - sin(angle) x0`, `u = x / sqrt(alpha^2 + sigma^2)`, from the data to the maximum noise.

    Args:
      The same as of `log_likelihood`.

    Returns:
      An `Encoding`.

    Raises:
      The same as of `log_likelihood`.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + cond, predicts="velocity")
      >>> two = gj.branches(denoise, cond=jnp.ones((2, 1)), uncond=jnp.zeros((2, 1)))
      >>> x = jnp.array([[-2.0], [-5.0]])
      >>> encoding = gj.likelihood.encode(two, gj.cfg(3.0), x, gj.schedules.flow())
      >>> print(encoding.latent.round(1))  # x + 3
      [[ 1.]
       [-2.]]

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
    """The log-likelihood of dequantised discrete data in bits per dimension, the unit that papers compare.

    `-(log p(x) + D log width) / (D log 2)`: the density times the volume of the cell of one sample.

    Args:
      log_likelihood: `[B]`, in nats, of data plus uniform noise of this `width`.
      shape: The shape of one sample.
      width: The distance between two values of the data. The default is for 8-bit images in [-1, 1].

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
    """The static arguments of a likelihood.

    Args:
      probes: As of `log_likelihood`.
      max_steps: As of `log_likelihood`.
      solver: As of `log_likelihood`.
      dtype: The dtype of x in the solver, at least float32.
    """

    probes: int | None
    max_steps: int
    solver: Same | None
    dtype: Any


class Model(NamedTuple):
    """The guided model whose ODE is solved.

    Args:
      networks: The branches of each network.
      guidance: The guidance.
      schedule: The schedule.
      low: The schedule's minimum noise level, the level of the data.
      high: The schedule's maximum noise level, the level of the latents.
    """

    networks: tuple[Branches, ...]
    guidance: Guidance
    schedule: Schedule
    low: NoiseLevel
    high: NoiseLevel


def _encoded(plan: Plan, model: Model, x: Array, keys: Array, tolerance: Any) -> Encoding:
    """Solves each sample on its own, in a batch of one."""

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
    """The guided prediction of one sample, its x in a batch of one, and the level at this angle."""
    signal = jnp.cos(angle) > 0
    ratio = jnp.where(signal, jnp.sin(angle) / jnp.where(signal, jnp.cos(angle), 1), jnp.inf)
    ratio = jnp.clip(ratio, model.low.ratio.astype(ratio.dtype), model.high.ratio.astype(ratio.dtype))
    level = jax.tree.map(lambda field: field.astype(u.dtype), model.schedule.at(ratio))
    x = (_size(level) * u)[None]
    denoise = guide(model.networks, model.guidance, Step(jnp.int32(0), level, level, key[None], model.low))
    prediction, _ = denoise(State(x, (), model.guidance.init(x), jnp.int32(0), jnp.zeros_like(x)), level)
    return prediction, x, level


def _directions(key: Array, x: Array, probes: int | None) -> Array:
    """`d_i`, `[n, ...]`, such that `sum_i d_i d_i^T` is the identity matrix, or has that expectation."""
    if probes is None:
        return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return jax.random.rademacher(key, (probes, *x.shape), x.dtype) / jnp.sqrt(jnp.asarray(probes, x.dtype))


def _size(level: NoiseLevel) -> Array:
    return jnp.sqrt(level.alpha**2 + level.sigma**2)


def _largest(error: Carried) -> Array:
    """The maximum of two errors: the root mean square of u, and the log-density."""
    return jnp.maximum(jnp.sqrt((error.u**2).mean()), jnp.abs(error.volume))
