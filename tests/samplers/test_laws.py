"""Samplers without guidance have the law of the mixture: their samples are as close to exact samples as another exact set.

One sampler of every family that draws noise is here unless a closed form tests its law, and one that draws none. The orders of
the others are in `test_orders.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from quick import quick_keys
from worlds import classes, mixture

import guidance_jax as gj

N, DIMENSION = 2400, 4
LABELS = jnp.arange(N) % 3
EDM = gj.schedules.edm(0.01, 50.0)
SAMPLERS = {
    "heun": (gj.heun(), 40),
    "ddpm(large)": (gj.ddpm("large"), 300),
    "dpmpp_sde": (gj.dpmpp_sde(), 100),
    "heun_sde": (gj.heun_sde(), 80),
    "heun, churned": (gj.churn(gj.heun(), EDM, 0.2, 0.05, 20.0), 60),
    "predictor_corrector": (gj.predictor_corrector(gj.ddim()), 200),
}


@functools.cache
def world():
    return mixture(DIMENSION)


@functools.cache
def branches():
    return classes(world(), LABELS)


@functools.cache
def exact(seed):
    return one_program(world().sample, jax.random.key(seed), N, LABELS)


def distance(a, b):
    """The distance of each class separately. Otherwise one class could gain samples at the expense of another unnoticed."""
    apart = lambda a, b: one_program(gj.metrics.sliced_wasserstein, a, b, jax.random.key(0))
    return np.mean([apart(a[y::3], b[y::3]) for y in range(3)])


@functools.cache
def between_exact_sets():
    return np.array([distance(exact(i), exact(i + 1)) for i in range(0, 12, 2)])


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_as_close_to_exact_samples_as_those_are_to_each_other(name):
    sampler, steps = SAMPLERS[name]
    levels = gj.levels(EDM, steps, gj.spacings.karras())
    x = one_program(gj.sample, quick_keys(N, seed=7), branches(), gj.chain(), sampler, levels, (DIMENSION,))
    noise = between_exact_sets()
    found = np.mean([distance(x, exact(i)) for i in (20, 21, 22)])
    assert found < noise.mean() + 3 * noise.std(ddof=1), (found, noise)


def test_the_criterion_rejects_a_run_that_is_too_short():
    levels = gj.levels(EDM, 8, gj.spacings.karras())
    x = one_program(gj.sample, quick_keys(N, seed=7), branches(), gj.chain(), gj.ddim(), levels, (DIMENSION,))
    noise = between_exact_sets()
    assert np.mean([distance(x, exact(i)) for i in (20, 21, 22)]) > noise.mean() + 6 * noise.std(ddof=1)
