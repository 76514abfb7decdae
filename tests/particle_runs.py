"""Runs of particles for which the law of the target is known, and statistics of them."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from one_program import one_program
from scipy.special import logsumexp
from worlds import gaussian

import guidance_jax as gj

M, V = {"cond": 0.8, "uncond": -0.3}, {"cond": 0.5, "uncond": 2.0}
FINE = gj.schedules.edm(0.02, 40.0), 40, gj.spacings.karras()


def edm():
    return gj.levels(gj.schedules.edm(0.05, 40.0), 12, gj.spacings.karras())


def pair():
    return tuple(gj.Branches(gaussian(M[name], V[name]), {name: None}) for name in M)


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return one_program(gj.feynman_kac, *args, **kwargs)


def normal(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2


def same(found, log_weights, known=0.0):
    total: Any = logsumexp(log_weights)
    np.testing.assert_allclose(found.log_weights, log_weights - total, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found.log_normaliser[0], known + total - np.log(len(log_weights)), rtol=1e-8, atol=1e-9)
    effective = np.exp(2 * total - logsumexp(2 * log_weights))
    np.testing.assert_allclose([found.effective[0], found.ancestors[0]], effective, rtol=1e-8)


def exact_kernels(levels) -> Any:
    """The two Gaussians. Each predicts the variance fraction of `ddpm("learned")` that makes its step their reverse kernel."""
    ends: Any = [gj.ddpm(end).kernel for end in ("small", "large")]

    def one(name):
        def denoise(x, level, cond):
            i = jnp.argmin(jnp.abs(levels.sigma - level.sigma))
            after = jax.tree.map(lambda field: field[i + 1], levels)
            small, large = (kernel(gj.Prediction(x, x), level, after)[1] for kernel in ends)
            r, r_after, v = level.sigma / level.alpha, after.sigma / after.alpha, V[name]
            exact = after.alpha * jnp.sqrt((r**2 - r_after**2) * (v + r_after**2) / (v + r**2))
            share = jnp.log(exact / small) / jnp.log(large / small)
            x0 = M[name] + level.alpha * v / (level.alpha**2 * v + level.sigma**2) * (x - level.alpha * M[name])
            eps = (x - level.alpha * x0) / level.sigma
            return gj.Prediction(x0, eps, jnp.full_like(x, share))

        return denoise

    return tuple(gj.Branches(one(name), {name: None}) for name in M)


def reward(x0, level):
    return -((x0 - 1.5) ** 2).sum(1)


def pooled(found, size, f):
    """The mean of f under the weights of all groups, with each group weighted by its normaliser, and its standard error."""
    normaliser = np.exp(np.asarray(found.log_normaliser, np.float64))
    w = np.exp(np.asarray(found.log_weights, np.float64)).reshape(-1, size)
    values = np.asarray(f(np.asarray(found.x))).reshape(-1, size)
    means = (w * values).sum(1)
    mean = (normaliser * means).sum() / normaliser.sum()
    error = np.sqrt((normaliser**2 * (means - mean) ** 2).sum()) / normaliser.sum()
    return mean, error


def crescent():
    """Two modes of class 0. The second is near class 1, and the tilted law leaves it."""
    means = jnp.array([[-1.5, 0.0], [1.0, 0.8], [1.8, -0.6]])
    covariances = jnp.stack([jnp.diag(jnp.array(v)) for v in ([0.3, 0.6], [0.4, 0.3], [0.5, 0.5])])
    return gj.oracles.GaussianMixture(means, covariances, jnp.array([0.3, 0.3, 0.4]), jnp.array([0, 0, 1]))
