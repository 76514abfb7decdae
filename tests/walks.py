"""Shared by tests of methods: drawn predictions, a guidance applied along them, a small network, formulae of several papers."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from worlds import SCHEDULES, keys, step

import guidance_jax as gj

WORLDS = {"vector": ((4, 6), "cosine"), "sequence": ((4, 12, 3), "flow"), "image": ((4, 12, 16, 2), "edm")}
NAMES = ("cond", "uncond", "weak", "image", "perturbed", "random", "retimed", "bad", "ugly")
# Parameters, one per sample.
W = np.array([-0.7, 3.5, 1.0, 7.0])
K = np.array([0.3, 0.0, 2.0, -1.0])
SHARE = np.array([0.0, 0.4, 0.7, 1.0])
LENGTH = np.array([0.5, 3.0, 100.0, 1e-3])


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def draw(world, names=NAMES, seed=0):
    """x, an x0 of each branch, and the level of x."""
    shape, schedule = WORLDS[world]
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), {name: rng.normal(size=shape) for name in names}, SCHEDULES[schedule]()(0.6)


def context(x, x0, level, base="cond", number=0, start=None):
    """Predictions that agree with x: `alpha x0 + sigma eps = x`."""
    a, s = float(level.alpha), float(level.sigma)
    branches = {name: gj.Prediction(jnp.asarray(p), jnp.asarray((x - a * p) / s)) for name, p in x0.items()}
    at = step(level if start is None else start, number=number, batch=len(x))
    return gj.Context(jnp.asarray(x), level, at, branches[base], branches)


def along(world, names=NAMES, base="cond"):
    """Three contexts at falling noise, as steps 0, 1 and 2 of a run."""
    found = []
    for k in range(3):
        x, x0, _ = draw(world, names, seed=k)
        found.append(context(x, x0, SCHEDULES[WORLDS[world][1]]()(0.9 - 0.3 * k), base, number=k))
    return found


def walk(guidance, contexts, asked=None):
    """The prediction of each context in turn. The guidance can read only the branches that it declares. `asked` records whether
    the unconditional branch was wanted.
    """
    state, predictions = guidance.init(contexts[0].x), []
    for here in contexts:
        if asked is not None:
            asked.append(bool(guidance.wants(state, here.step)["uncond"]))
        declared = here._replace(branches={name: p for name, p in here.branches.items() if name in guidance.needs})
        prediction, state = guidance.update(here.base, state, declared)
        predictions.append(prediction)
    return predictions


def same(ours, theirs, contexts, message=""):
    """Two guidances give the same x0 and eps in each context. A sampler sees nothing else, so their runs are the same."""
    for got, wanted in zip(walk(ours, contexts), walk(theirs, contexts), strict=True):
        np.testing.assert_allclose(got.x0, wanted.x0, rtol=1e-9, atol=1e-11, err_msg=message)
        np.testing.assert_allclose(got.eps, wanted.eps, rtol=1e-9, atol=1e-11, err_msg=message)


def apart(one, other, contexts):
    """The largest difference between the x0 of two guidances."""
    pairs = zip(walk(one, contexts), walk(other, contexts), strict=True)
    return max(np.abs(np.asarray(a.x0) - np.asarray(b.x0)).max() for a, b in pairs)


MIXING = np.array([[0.9, -0.4, 0.3], [0.2, 0.7, -0.5], [-0.3, 0.6, 0.8]])
GIVEN = {"cond": np.linspace(-1.0, 1.5, 6), "uncond": np.full(6, -0.3)}
"""The conditions of six samples in `run`."""


def network(x, t, cond):
    return jnp.tanh(x @ MIXING.astype(x.dtype) + cond[:, None]) + 0.3 * t[:, None]


DENOISE = gj.denoiser(network, predicts="v")


def predicted(x, level, cond):
    """The x0 and the eps of `DENOISE`, in NumPy."""
    a, s, t = float(level.alpha), float(level.sigma), float(level.t)
    v = np.tanh(x @ MIXING + np.asarray(cond)[:, None]) + 0.3 * t
    return (a * x - s * v) / (a**2 + s**2), (s * x + a * v) / (a**2 + s**2)


def gaussian(x, level, cond):
    """The denoiser of a Gaussian of mean and variance `cond`."""
    mean, variance = cond
    pull = (x - level.alpha * mean) / (level.alpha**2 * variance + level.sigma**2)
    return gj.Prediction(mean + level.alpha * variance * pull, level.sigma * pull)


def run(guidance, sampler: gj.Sampler | None = None, **conds):
    """Samples of a small network that mixes the three coordinates of x."""
    levels = gj.levels(SCHEDULES["cosine"](), 6, gj.spacings.karras())
    given: dict[str, Any] = {name: jnp.asarray(cond, float) for name, cond in (conds or GIVEN).items()}
    return gj.sample(keys(6), gj.branches(DENOISE, **given), guidance, sampler or gj.ddim(), levels, (3,))


class StoppedError(Exception):
    """A run has passed all checks and warnings, and is now traced."""


def stop(denoise, state, level, next, keys):
    raise StoppedError


STOP = gj.Sampler(lambda x: (), stop)
"""A sampler that ends a run before it is compiled."""


def cfg(c, u, w):
    return (1 + (w - 1)) * c - (w - 1) * u


def clipped(d, most):
    return d if np.linalg.norm(d) <= most else d / np.linalg.norm(d) * most


def projected(d, c, eta):
    unit = c / np.linalg.norm(c)
    parallel = np.sum(d * unit) * unit
    return d - parallel + eta * parallel


def kernel(x, x0, level, after):
    """The mean of the reverse step and its two variances, small and large (arXiv:2006.11239, section 3.2)."""
    a, s, a1, s1 = (float(value) for value in (level.alpha, level.sigma, after.alpha, after.sigma))
    kept, added = a / a1, s**2 - (a / a1 * s1) ** 2
    return (kept * s1**2 * x + a1 * added * x0) / s**2, added * s1**2 / s**2, added
