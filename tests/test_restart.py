"""The Restart sampler against an independent NumPy reading of its paper, the closed forms of a Gaussian, and an exact mixture."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import readings
from worlds import classes, gaussians, keys, mixture

import guidance_jax as gj
from guidance_jax.base import Prediction
from guidance_jax.noise import SAMPLER, at_level

EDM = gj.schedules.edm()
MEAN, VARIANCE = 1.3, 0.25
SOLVERS = {"euler": (gj.euler, readings.edm(False)), "heun": (gj.heun, readings.edm(True))}


def denoise(x, alpha, sigma):
    return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


def branches():
    return gaussians(MEAN, VARIANCE, MEAN, VARIANCE)[0]


def spaced(high, low, steps):
    """Karras et al. 2022, equation 5, rho = 7."""
    root = lambda value: value ** (1 / 7)
    return (root(high) + np.arange(steps + 1) / steps * (root(low) - root(high))) ** 7


def levels_of(name):
    schedule = {"edm": EDM, "cosine": gj.schedules.cosine(), "flow": gj.schedules.flow(), "vp": gj.schedules.ddpm_linear()}[name]
    return schedule, gj.levels(schedule, 9, gj.spacings.uniform() if name == "flow" else gj.spacings.karras())


def restarted(step, x, level, interval, z):
    """x after K restarts from `level`, as the paper has it: in `x / alpha` and `sigma / alpha`, `z` [K] being their noise."""
    steps, times, high, scale = interval
    alpha, sigma = level
    y, low = x / alpha, sigma / alpha
    for k in range(times):
        y = y + scale * np.sqrt(high**2 - low**2) * z[k]
        for now, after in itertools.pairwise(spaced(high, low, steps)):
            y, _ = step(denoise, y, None, (1.0, now), (1.0, after), 0.0)
    return alpha * y


@functools.cache
def program(solver, name, steps, times):
    schedule, levels = levels_of(name)

    @jax.jit
    def generate(keys, low, high, scale):
        sampler = gj.restart(SOLVERS[solver][0](), schedule, steps, times, low, high, noise_scale=scale)
        state, _ = gj.run(keys, branches(), gj.chain(), sampler, levels, (1,))
        return state.x.ravel(), state.evaluations

    return generate, levels


def drawn(all_keys, level, times):
    """The normal numbers of the restarts in the step that begins at a level, `[K, B]`."""
    folded = lambda keys, n: jax.vmap(jax.random.fold_in, (0, None))(keys, n)
    own = at_level(all_keys, level, SAMPLER)
    noise = jax.vmap(lambda key: jax.random.normal(key, (1,)))
    return np.stack([noise(folded(folded(own, k + 1), 0)).ravel() for k in range(times)])


@pytest.mark.parametrize(("solver", "name"), [("heun", "edm"), ("heun", "cosine"), ("euler", "vp"), ("heun", "flow")])
def test_samples_are_the_papers_given_the_same_noise(x64, solver, name):
    steps, times, n, high, scale = 3, 2, 5, 4.0, 1.1
    generate, levels = program(solver, name, steps, times)
    ratio = [float(r) for r in levels.ratio]
    pairs = [(float(a), float(s)) for a, s in zip(levels.alpha, levels.sigma, strict=True)]
    reading = SOLVERS[solver][1] if name != "flow" else None
    for place in range(1, len(levels) - 1):
        if ratio[place] >= 2.0:
            continue
        # Between the two levels, and at the lower one.
        for low in (ratio[place], min(3.9, 0.5 * (ratio[place - 1] + ratio[place]))):
            samples, evaluations = generate(keys(n), low, high, scale)
            per_step = 1 if solver == "euler" else 2
            assert evaluations == per_step * (len(levels) - 2) + 1 + per_step * steps * times
            plain = gj.sample(keys(n), branches(), gj.chain(), SOLVERS[solver][0](), levels[: place + 1], (1,)).ravel()
            z = drawn(keys(n), levels[place - 1], times)
            step = SOLVERS[solver][1]
            x = restarted(step, np.asarray(plain), pairs[place], (steps, times, high, scale), z)
            for now, after in itertools.pairwise(pairs[place:]):
                x, _ = step(denoise, x, None, now, after, 0.0)
            np.testing.assert_allclose(samples, x, rtol=1e-8, err_msg=f"{name} {place} {low}")
    assert reading is None or reading
