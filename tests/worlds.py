"""The exact worlds of the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import guidance_jax as gj
from guidance_jax.noise import SAMPLER, at_level, normal

SCHEDULES = {
    "cosine": gj.schedules.cosine,
    "linear": gj.schedules.linear,
    "ddpm_linear": gj.schedules.ddpm_linear,
    "ddpm_cosine": gj.schedules.ddpm_cosine,
    "edm": gj.schedules.edm,
    "flow": gj.schedules.flow,
}
OUTPUTS = {
    "eps": lambda p, level: p.eps,
    "x0": lambda p, level: p.x0,
    "v": lambda p, level: level.alpha * p.eps - level.sigma * p.x0,
    "score": lambda p, level: -p.eps / level.sigma,
    "velocity": lambda p, level: p.eps - p.x0,
}


def mixture(dimension: int = 3, seed: int = 0) -> gj.oracles.GaussianMixture:
    """Five overlapping components of three classes, correlated, of unequal weight."""
    rng = np.random.default_rng(seed)
    means = 1.5 * rng.normal(size=(5, dimension))
    roots = rng.normal(size=(5, dimension, dimension))
    covariances = np.einsum("kij,klj->kil", roots, roots) / dimension + 0.1 * np.eye(dimension)
    return gj.oracles.GaussianMixture(
        jnp.asarray(means, float), jnp.asarray(covariances, float), jnp.arange(1.0, 6.0), jnp.array([0, 0, 1, 1, 2])
    )


@functools.cache
def gaussian(mean: float, variance: float):
    """The denoiser of `N(mean, variance)`, one object per law."""

    def denoise(x, level, cond):
        away = (x - level.alpha * mean) / (level.alpha**2 * variance + level.sigma**2)
        return gj.Prediction(mean + level.alpha * variance * away, level.sigma * away)

    return denoise


def gaussians(m_c: float, v_c: float, m_u: float, v_u: float) -> tuple[gj.Branches, ...]:
    """Two denoisers in one dimension, of N(m_c, v_c) and of N(m_u, v_u): branches `cond` and `uncond`."""

    def one(mean: float, variance: float):
        return gj.oracles.GaussianMixture(
            jnp.full((1, 1), mean), jnp.full((1, 1, 1), variance), jnp.ones(1), jnp.zeros(1, int)
        ).denoise

    def everywhere(denoise):
        return lambda x, level, cond: denoise(x, level, jnp.zeros(len(x), int))

    return (gj.branches(everywhere(one(m_c, v_c)), cond=None), gj.branches(everywhere(one(m_u, v_u)), uncond=None))


def network(m, schedule, predicts):
    """A network with the exact output of the given kind. Besides x it receives only t."""

    def apply(x, t, cond):
        column = jax.tree.map(lambda field: field[:, None], schedule(t))
        return OUTPUTS[predicts](m.denoise(x, schedule(t), cond), column)

    return apply


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def classes(mixture: gj.oracles.GaussianMixture, labels: jax.Array) -> gj.Branches:
    return gj.branches(mixture.denoise, cond=labels, uncond=jnp.full_like(labels, -1))


def sampler_noise(keys: jax.Array, levels: gj.NoiseLevel, number: int, x: jax.Array, fold: int | None = None) -> jax.Array:
    """The noise that a sampler draws in a step of a run. The sampler may fold its keys."""
    own = at_level(keys, path(levels, number), SAMPLER)
    return normal(own if fold is None else jax.vmap(jax.random.fold_in, (0, None))(own, fold), x)


def path(levels: gj.NoiseLevel, i: int | slice | np.ndarray) -> gj.NoiseLevel:
    return jax.tree.map(lambda field: field[i], levels)


def step(level: gj.NoiseLevel, after: gj.NoiseLevel | None = None, number: int = 0, batch: int = 1) -> gj.Step:
    return gj.Step(jnp.int32(number), level, level if after is None else after, keys(batch))


PEAK = 0.25
"""The variance of a peak."""


def peaks_x0(x, alpha, sigma, labels, xp=jnp):
    """The posterior mean of `peaks`, in JAX or in NumPy."""
    labels, total = labels[:, None], alpha**2 * PEAK + sigma**2
    mean = xp.where(labels < 0, xp.tanh(alpha * x / total), (labels - 1).astype(x.dtype))
    return (alpha * PEAK * x + sigma**2 * mean) / total


def peaks(x: jax.Array, level: gj.NoiseLevel, labels: jax.Array) -> gj.Prediction:
    """The exact denoiser, in each coordinate, of a peak at -1, 0 or 1 (labels 0, 1 and 2), or of two at -1 and 1 (label -1).

    It is elementwise, so a run with it compiles in a third of the time of one with a `mixture`.
    """
    alpha, sigma = (jnp.asarray(field, x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for field in (level.alpha, level.sigma))
    x0 = peaks_x0(x, alpha, sigma, labels)
    return gj.Prediction(x0, (x - alpha * x0) / sigma)


def peaked(labels: jax.Array, denoise=peaks) -> gj.Branches:
    """The branches `cond` and `uncond` of `peaks`."""
    return gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, -1))
