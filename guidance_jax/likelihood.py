"""The exact likelihood of data under a model's probability-flow ODE, guided or not."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from guidance_jax.base import Cond, Guidance, NoiseLevel, Schedule, State, Step
from guidance_jax.checks.old import (
    check_branches,
    check_guidance,
    check_keys,
    check_networks,
    check_scalar,
    check_schedule,
    check_start,
)
from guidance_jax.guided import Networks, guide
from guidance_jax.checks.old import check_count, check_kind
from guidance_jax.checks.traced import all_finite

__all__ = ["Encoding", "bits_per_dimension", "encode", "log_likelihood"]


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
      >>> one = branches(denoiser(lambda x, t, cond: 0 * x, predicts="x0"), cond=None)
      >>> found = likelihood.encode(one, chain(), jnp.ones((1, 2)), schedules.edm(sigma_min=1.0))
      >>> print(found.log_likelihood.round(2), found.latent.round(0))
      [-2.84] [[80. 80.]]
    """

    log_likelihood: Float[Array, "b"]
    """In nats, of x as it was given."""
    latent: Float[Array, "b ..."]
    """x at the schedule's most noise: a deterministic sampler that starts there comes back."""
    steps: Float[Array, "b"] | Any
    """The solver's steps, rejected ones included, `[B]`."""


def log_likelihood(
    branches: Networks,
    guidance: Guidance,
    x: Array,
    schedule: Schedule,
    *,
    keys: Array | None = None,
    probes: int | None = None,
    tolerance: float = 1e-5,
    solver: Any = None,
    max_steps: int = 4096,
) -> Array:
    """The log-density of data under what a deterministic sampler of infinitely many steps draws.

    With `u = x / sqrt(alpha^2 + sigma^2)` and `angle = arctan(sigma / alpha)` every schedule's probability-flow ODE is
    `du / d angle = v = cos(angle) eps - sin(angle) x0`, and
    `log p(x) = log N(u_max; 0, sin(angle_max)^2 I) + integral of div v d angle - D/2 log(alpha^2 + sigma^2)`.

    x is taken for what stands at the schedule's `t_min`; from there diffrax solves up to `t_max`. Each sample has steps of its
    own, so no sample depends on its neighbours, and what guidance does at an interval's bounds is met to the tolerance.

    This is the density of the samples and not of the data: a run that starts from N(0, sigma^2) at a finite sigma / alpha keeps
    a bias of order `alpha / sigma`, none from infinity (`flow`). Nor does CFG sample `p(x)^(1 - w) p(x | y)^w`.

    Samples are solved one by one (by `jax.vmap`), each with its own rows of the conditions. What else is one a sample, such as
    scales `[B]` or a classifier's labels, has to go the same way: `jax.vmap` this function over them, with batches of one.
    A sample that meets NaN, in x, in the network or of a label outside, is NaN, alone.

    Args:
      branches: what `branches(...)` made, or a tuple of those. No condition may be drawn anew in every step.
      guidance: one that remembers nothing; `chain()` for none. One that draws sees the same draws at every level.
      x: `[B, ...]`.
      schedule: of the network.
      keys: `[B]` PRNG keys, one a sample; for the probes.
      probes: None takes the exact divergence, by D derivatives of the model at once, D the size of a sample. A number takes
        Hutchinson's estimate of it by as many random signs: the result is random, and right on average.
      tolerance: of each solver's step, in u and in the log-density, relative and absolute.
      solver: diffrax's; `diffrax.Tsit5()` where None. `Dopri8` pays for small tolerances, in float64.
      max_steps: how many steps a sample may take.

    Returns:
      `[B]`, in nats.

    Raises:
      ImportError: if diffrax is not installed.
      ValueError: if the guidance remembers something, a condition is drawn anew in every step, probes come without keys, the
        arguments do not fit each other, or within `jax.shard_map`, unless its `check_vma` is False.
      RuntimeError: while it runs, if a sample needs more than `max_steps`, or the guidance renoises with another eps than its
        x0 implies (CFG++), so that its small steps have no ODE for a limit.

    Example:
      >>> mixture = oracles.GaussianMixture(jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.arange(2))
      >>> labels = jnp.array([1, 1])
      >>> two = branches(mixture.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
      >>> nats = log_likelihood(two, cfg(1.0), jnp.array([[2.0], [3.0]]), schedules.flow())
      >>> [f"{value:.2f}" for value in nats]
      ['-0.92', '-1.42']

    Reference: Song et al. 2021, arXiv:2011.13456, appendix D.2; Grathwohl et al. 2018, arXiv:1810.01367, equation 8.
    """
    asked = {"keys": keys, "probes": probes, "tolerance": tolerance, "solver": solver, "max_steps": max_steps}
    return encode(branches, guidance, x, schedule, **asked).log_likelihood


def encode(
    branches: Networks,
    guidance: Guidance,
    x: Array,
    schedule: Schedule,
    *,
    keys: Array | None = None,
    probes: int | None = None,
    tolerance: float = 1e-5,
    solver: Any = None,
    max_steps: int = 4096,
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
      >>> one = branches(oracles.GaussianMixture(jnp.zeros((1, 2)), jnp.eye(2)[None], jnp.ones(1), jnp.zeros(1, int)).denoise,
      ...                cond=jnp.array([0]))
      >>> latent = likelihood.encode(one, chain(), jnp.array([[1.0, -2.0]]), schedules.edm()).latent
      >>> print(latent.round(0))
      [[  80. -160.]]

    Reference: Song et al. 2021, arXiv:2011.13456, section 4.3.
    """
    try:
        import diffrax
        import equinox
    except ImportError as error:
        raise ImportError("log_likelihood needs the package diffrax: pip install diffrax.") from error
    networks = check_networks(branches)
    check_scalar(tolerance, "tolerance", above=0)
    check_count(max_steps, "max_steps")
    given, like = _checked(networks, guidance, x, schedule, keys, probes)
    low, high = schedule(schedule.t_min), schedule(schedule.t_max)
    start, end = (jnp.arctan2(level.sigma, level.alpha).astype(like.dtype) for level in (low, high))

    def at(angle: Array) -> NoiseLevel:
        signal = jnp.cos(angle) > 0
        ratio = jnp.where(signal, jnp.sin(angle) / jnp.where(signal, jnp.cos(angle), 1), jnp.inf)
        level = schedule.at(jnp.clip(ratio, low.ratio.astype(ratio.dtype), high.ratio.astype(ratio.dtype)))
        return jax.tree.map(lambda field: field.astype(like.dtype), level)

    def flow(x: Array, conds: list[dict[str, Cond]], key: Array) -> Encoding:
        """Of one sample, without its batch axis."""
        alone = tuple(
            network._replace(conds=jax.tree.map(lambda leaf: leaf[None], cond))
            for network, cond in zip(networks, conds, strict=True)
        )

        def slope(angle: Array, u: Array) -> tuple[Array, Array]:
            """v, and whether eps is known to be another than x0 implies, which NaN is not."""
            level = at(angle)
            size = _size(level)
            x = (size * u)[None]
            denoise = guide(alone, guidance, Step(jnp.int32(0), level, level, key[None], low))
            prediction, _ = denoise(State(x, (), guidance.init(x), jnp.int32(0), jnp.zeros_like(x)), level)
            if prediction.x0.shape != x.shape or prediction.eps.shape != x.shape:
                raise ValueError(f"the guided x0 of one sample has shape {prediction.x0.shape[1:]}, but x {x.shape[1:]}.")
            signal, noise = level.alpha * prediction.x0, level.sigma * prediction.eps
            rest, parts = jnp.abs(x - signal - noise).max(), (jnp.abs(x) + jnp.abs(signal) + jnp.abs(noise)).max()
            v = (level.alpha * prediction.eps - level.sigma * prediction.x0) / size
            return v[0], rest > 1e-3 * parts

        signs = _directions(key, x, probes)

        def change(angle: Array, carried: Carried, _: Any) -> Carried:
            v, derivative = jax.linearize(lambda u: slope(angle, u)[0], carried.u)
            volume = (signs * jax.vmap(derivative)(signs)).sum()
            known = all_finite(v) & all_finite(volume)
            return Carried(jnp.where(known, v, 0), jnp.where(known, volume, 0), jnp.where(known, 0, 1).astype(x.dtype))

        u = x / _size(low).astype(x.dtype)
        _, renoised = slope((start + end) / 2, u)
        u = equinox.error_if(u, renoised, _NO_ODE)
        known = all_finite(u)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(change),  # pyright: ignore[reportArgumentType]
            diffrax.Tsit5() if solver is None else solver,
            start,
            end,
            None,
            Carried(jnp.where(known, u, 0), jnp.zeros((), x.dtype), jnp.where(known, 0, 1).astype(x.dtype)),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance, norm=_largest),
            max_steps=max_steps,
        )
        last, volume, poison = (leaf[-1] for leaf in solution.ys)  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        last = jnp.where(poison > 0, jnp.nan, last)
        z = last / jnp.sin(end)
        log_normal = -0.5 * (z**2).sum() - x.size * (0.5 * math.log(2 * math.pi) + jnp.log(jnp.sin(end)))
        log_p = log_normal + volume - x.size * jnp.log(_size(low).astype(x.dtype))
        return Encoding(log_p, last * _size(high).astype(x.dtype), solution.stats["num_steps"])

    @jax.jit
    def every(x: Array, conds: list[dict[str, Cond]], keys: Array) -> Encoding:
        return jax.vmap(flow)(x.astype(like.dtype), conds, keys)

    try:
        return every(x, [network.conds for network in networks], given)
    except (ValueError, TypeError) as error:
        if len(x) > 1:
            error.add_note(_ONE_BY_ONE)
        raise


def bits_per_dimension(log_likelihood: Array, shape: tuple[int, ...], *, width: float = 2 / 256) -> Array:
    """A log-likelihood of discrete data, dequantised, in the unit that papers compare.

    `-(log p(x) + D log width) / (D log 2)`: the density times the volume of a sample's cell.

    Args:
      log_likelihood: in nats, `[B]`, of data to which uniform noise of `width` was added.
      shape: of one sample.
      width: between two values of the data; that of 8-bit images in [-1, 1] unless told otherwise.

    Returns:
      `[B]`.

    Raises:
      ValueError: if width is not positive.

    Example:
      >>> print(bits_per_dimension(jnp.array([28 * 28 * jnp.log(1 / 2)]), (28, 28, 1)))
      [8.]

    Reference: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    check_kind(shape, Sequence, "shape", "(28, 28, 1) is one.")
    check_scalar(width, "width", above=0)
    size = math.prod(shape)
    return -(log_likelihood / size + math.log(width)) / math.log(2)


_NO_ODE = (
    "the guidance renoises with another eps than its x0 implies, as CFG++ does: its small steps have no ODE for a limit, so "
    "there is no likelihood. cfg has one."
)
_ONE_BY_ONE = (
    "log_likelihood takes one sample at a time, with a batch axis of 1. Where a scale, a classifier's labels or another array "
    "that the guidance holds is one a sample, jax.vmap log_likelihood over it, x[None] and the conditions."
)


def _checked(
    networks: Networks, guidance: Guidance, x: Array, schedule: Schedule, keys: Array | None, probes: int | None
) -> tuple[Array, jax.ShapeDtypeStruct]:
    """The keys, and what x is like in the solver; raises as `log_likelihood` says."""
    check_guidance(guidance)
    check_schedule(schedule)
    if probes is not None and (keys is None or probes < 1):
        raise ValueError(
            f"probes={probes} with keys={'None' if keys is None else 'given'}: Hutchinson's estimate takes at least one "
            "probe, and keys to draw them: keys=jax.random.split(jax.random.key(0), B)."
        )
    given = jax.random.split(jax.random.key(0, impl="threefry2x32"), max(1, *jnp.shape(x)[:1], 1)) if keys is None else keys
    check_keys(given)
    if isinstance(x, tuple):
        raise TypeError(f"x must be the data, [B, ...], got the tuple {x}.")
    kind: Any = jax.typeof(x)
    axes = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else getattr(kind, "vma", ())
    if axes:
        raise ValueError(
            f"log_likelihood got jax.shard_map's default check, over {', '.join(map(str, axes))}, which diffrax's loops do not "
            "pass; use jax.shard_map(..., check_vma=False), or a batch that is sharded outside of it."
        )
    shape, dtype = check_start(given, schedule(schedule.t_min), x)
    like = jax.ShapeDtypeStruct(shape, dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32)
    check_branches(check_networks(networks), guidance, like, given)
    for network in check_networks(networks):
        for name, cond in network.conds.items():
            if callable(cond):
                raise ValueError(
                    f"branch {name!r} has a condition that is drawn anew in every step, which no ODE does; give an array."
                )
    remembered = jax.tree.leaves(jax.eval_shape(guidance.init, like))
    if remembered:
        raise ValueError(
            f"the guidance remembers {len(remembered)} arrays from step to step (momentum, reuse, adaptive and feedback do), "
            "but the slope of an ODE depends on x and the level alone; take one without memory: apg(scale, beta=0) has none."
        )
    return given, like


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
