"""Guided laws of one-dimensional Gaussians against their closed forms (Bradley & Nakkiran 2024, arXiv:2408.09000).

Every sampler here is affine in its starting point and its noise, so the law of its output is read off exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import gaussians, keys

import guidance_jax as gj

V_C, V_U = 0.5, 2.0
WIDE = {"sigma_min": 1e-3, "sigma_max": 1e3}


def ode_law(guidance, levels, m_c=0.0, m_u=0.0, sampler=None):
    """Mean and variance of a deterministic sampler's output from N(0, sigma_max^2)."""
    ends = jnp.array([[0.0], [1.0]])
    branches = gaussians(m_c, V_C, m_u, V_U)
    at_zero, at_one = gj.sample(keys(2), branches, guidance, sampler or gj.dpmpp_2m(), levels, ends).ravel()
    return at_zero, ((at_one - at_zero) * levels.sigma[0]) ** 2


@functools.partial(jax.jit, static_argnames=("steps", "method"))
def sde_law(scale, m_c, m_u, steps, method=gj.cfg):
    """Mean and variance of DDPM's output: its transition of each step is affine, x' = a x + b + s z."""
    levels = gj.levels(gj.schedules.edm(**WIDE), steps, gj.spacings.karras())
    branches = gaussians(m_c, V_C, m_u, V_U)
    sampler, guidance, key = gj.ddpm(), method(scale), keys(1)
    z = jax.random.normal(key[0], (1,))

    def step(law, ends):
        level, after = ends

        def move(x):
            state = gj.State(jnp.full((1, 1), x), (), (), jnp.int32(0), jnp.zeros((1, 1)))
            return sampler.step(
                gj.guide(branches, guidance, gj.Step(jnp.int32(0), level, after, key)), state, level, after, key
            ).x[0, 0]

        noise = after.sigma * jnp.sqrt(1 - (after.sigma / level.sigma) ** 2)
        b = move(0.0) - noise * z[0]
        a = move(1.0) - move(0.0)
        return (a * law[0] + b, a**2 * law[1] + noise**2), None

    pairs = jax.tree.map(lambda f: f[:-1], levels), jax.tree.map(lambda f: f[1:], levels)
    return jax.lax.scan(step, (jnp.zeros(()), levels.sigma[0] ** 2), pairs)[0]


SCALES = [0.0, 0.5, 1.0, 2.0, 3.0, 8.0]


@pytest.mark.parametrize("scale", SCALES)
def test_ode_variance_and_mean(x64, scale):
    levels = gj.levels(gj.schedules.edm(**WIDE), 8000, gj.spacings.karras())
    _, variance = ode_law(gj.cfg(scale), levels)
    np.testing.assert_allclose(variance, V_C**scale * V_U ** (1 - scale), rtol=2e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_ode_mean_for_equal_variances(x64, scale):
    """`w m_c + (1 - w) m_u`, less the O(1 / sigma_max) that an ODE keeps of its start."""
    levels = gj.levels(gj.schedules.edm(sigma_min=1e-3, sigma_max=1e5), 4000, gj.spacings.karras())
    branches = gaussians(3.0, 1.0, 1.0, 1.0)
    mean = gj.sample(keys(1), branches, gj.cfg(scale), gj.dpmpp_2m(), levels, jnp.zeros((1, 1)))[0, 0]
    np.testing.assert_allclose(mean, 3.0 * scale + 1.0 * (1 - scale), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_sde_variance_and_mean(x64, scale):
    """First order in the step: Richardson's extrapolation of two runs removes the leading error."""
    (mean1, var1), (mean2, var2) = (sde_law(scale, 3.0, 1.0, steps) for steps in (2000, 4000))
    g = V_C**scale * V_U ** (1 - scale)
    variance = (V_C * V_U - V_C ** (2 * scale) * V_U ** (2 - 2 * scale)) / ((V_U - V_C) * (2 * scale - 1 or np.nan))
    if scale == 0.5:  # the limit of the formula, where numerator and denominator vanish
        variance = V_C * V_U * np.log(V_U / V_C) / (V_U - V_C)
    np.testing.assert_allclose(2 * var2 - var1, variance, rtol=1e-4)
    np.testing.assert_allclose(2 * mean2 - mean1, (3.0 * (V_U - g) + 1.0 * (g - V_C)) / (V_U - V_C), rtol=1e-4)


def test_neither_is_the_tilted_law(x64):
    """At w = 3 the three variances differ by far more than any tolerance above."""
    tilted = 1 / (3 / V_C - 2 / V_U)
    ode = ode_law(gj.cfg(3.0), gj.levels(gj.schedules.edm(**WIDE), 500, gj.spacings.karras()))[1]
    sde = sde_law(3.0, 0.0, 0.0, 2000)[1]
    assert abs(ode - tilted) > 0.1 * tilted
    assert abs(sde - tilted) > 0.1 * tilted
    assert abs(sde - ode) > 0.1 * tilted


@pytest.mark.parametrize(("first", "last"), [(1600, 4800), (3200, 6000)])
@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_interval_variance(x64, scale, first, last):
    levels = gj.levels(gj.schedules.edm(**WIDE), 8000, gj.spacings.karras())
    hi, lo = levels.ratio[first], levels.ratio[last]
    _, variance = ode_law(gj.during(gj.cfg(scale), lo, hi), levels, sampler=gj.heun())
    share = (V_C + lo**2) * (V_U + hi**2) / ((V_C + hi**2) * (V_U + lo**2))
    np.testing.assert_allclose(variance, V_C * share ** (scale - 1), rtol=2e-4)


@pytest.mark.parametrize("schedule", ["edm", "cosine", "linear", "flow"])
def test_the_law_does_not_depend_on_the_schedule(x64, schedule):
    bounds = {
        "edm": lambda: gj.schedules.edm(0.01, 100.0),
        "cosine": lambda: gj.schedules.cosine(jnp.arctan(0.01) * 2 / jnp.pi, jnp.arctan(100.0) * 2 / jnp.pi),
        "linear": lambda: gj.schedules.linear(t_min=1e-3, t_max=0.958),
        "flow": lambda: gj.schedules.flow(0.01 / 1.01, 100 / 101),
    }
    levels = gj.levels(bounds[schedule](), 2000, gj.spacings.karras(sigma_min=0.01, sigma_max=100.0))
    _, variance = ode_law(gj.cfg(3.0), levels, sampler=gj.heun())
    exact = V_C**3 / V_U**2
    np.testing.assert_allclose(variance, exact, rtol=1e-3)


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_a_scaled_score_is_not_a_temperature(x64, scale):
    """A whole score times w: variance v / (2 w - 1) by SDE, and 0 by ODE as sigma_max grows."""

    def power(scale):
        def update(prediction, context):
            x0 = context.x + scale * (prediction.x0 - context.x)
            return prediction._replace(x0=x0, eps=scale * prediction.eps)

        return gj.stateless(update)

    variance1, variance2 = (sde_law(scale, 0.0, 0.0, steps, power)[1] for steps in (4000, 8000))
    np.testing.assert_allclose(2 * variance2 - variance1, V_C / (2 * scale - 1), rtol=1e-3)

    def variance_by_ode(sigma_max):
        levels = gj.levels(gj.schedules.edm(1e-3, sigma_max), 2000, gj.spacings.karras())
        return ode_law(power(scale), levels)[1]

    assert variance_by_ode(1e4) < 0.02 * variance_by_ode(1e2)


def test_a_tolerance_here_would_catch_a_scale_one_percent_off(x64):
    levels = gj.levels(gj.schedules.edm(**WIDE), 2000, gj.spacings.karras())
    _, variance = ode_law(gj.cfg(3.03), levels)
    assert abs(variance / (V_C**3 / V_U**2) - 1) > 0.03
