"""Guided laws of one-dimensional Gaussians against their closed forms (Bradley & Nakkiran 2024, arXiv:2408.09000).

Every sampler here is affine in its starting point and its noise, so the law of its output is computed exactly.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
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


def draws(key, numbers=()):
    """The noise of a step: drawn from its keys, or from its keys folded with each number."""
    folded = [jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, i) for i in numbers] or [key]
    return jnp.stack([jax.vmap(lambda k: jax.random.normal(k, (1,)))(one)[:, 0] for one in folded], axis=1)


@functools.partial(jax.jit, static_argnames=("make", "method", "numbers"))
def affine_law(make, value, scale, bounds, levels, *, means=(1.5, -0.5), method=gj.cfg, numbers=()):
    """Mean and variance of the output of a sampler, `make(value)`. Each of its steps is affine, `x' = a x + b + sum_j s_j z_j`.
    The coefficients are solved for from as many rows as there are coefficients.
    """
    sampler, branches, guidance = make(value), gaussians(means[0], V_C, means[1], V_U), gj.during(method(scale), *bounds)
    rows = max(len(numbers), 1) + 2
    key = keys(rows, seed=1)
    start = jnp.linspace(-1.0, 1.0, rows)[:, None]
    design = jnp.concatenate([start, jnp.ones((rows, 1)), draws(key, numbers)], axis=1)
    inverse = jnp.linalg.inv(design)

    def step(law, ends):
        level, after = ends
        state = gj.State(start, sampler.init(start), guidance.init(start), jnp.int32(0), jnp.zeros_like(start))
        denoise = gj.guide(branches, guidance, gj.Step(jnp.int32(0), level, after, key))
        a, b, *s = inverse @ sampler.step(denoise, state, level, after, key).x[:, 0]
        return (a * law[0] + b, a**2 * law[1] + sum(x**2 for x in s)), None

    return jax.lax.scan(step, (jnp.zeros(()), levels.sigma[0] ** 2), (levels[:-1], levels[1:]))[0]


EVERYWHERE = (0.0, 1e9)


def ancestral(_):
    return gj.ddpm()


def sde_law(scale, means, steps, method=gj.cfg):
    return affine_law(ancestral, 0.0, scale, EVERYWHERE, wide(steps), means=means, method=method)


def wide(steps):
    return gj.levels(gj.schedules.edm(**WIDE), steps, gj.spacings.karras())


def guided_law(scale, eta, means=(0.0, 0.0), low=0.0, high=1e9):
    """Mean and variance of `dy = (1 + eta^2) / 2 score |dtau| + eta sqrt|dtau| z`, from N(0, sigma_max^2) to tau = 0, guided in
    an interval of sigma. They follow two linear equations in tau, which are solved by an integrating factor and quadrature.
    """
    (m_c, m_u), end = means, WIDE["sigma_max"] ** 2
    gap = lambda tau: np.log((V_C + tau) / (V_U + tau))
    log_factor = lambda tau: np.log(V_C + tau) + (scale - 1) * (gap(np.clip(tau, low**2, high**2)) - gap(low**2))

    def pull(tau):
        inside = (scale - 1) * (low**2 < tau < high**2)
        return m_c / (V_C + tau) + inside * (m_c / (V_C + tau) - m_u / (V_U + tau))

    def integral(f):
        ends = sorted({np.log(x) for x in (1e-10, V_C, V_U, 1e2, end, *(b**2 for b in (low, high) if 0 < b < 1e3))})
        parts = itertools.pairwise(ends)
        return sum(quad(lambda s: f(np.exp(s)) * np.exp(s), *part, epsabs=0, epsrel=1e-10)[0] for part in parts)

    k, first, last = 1 + eta**2, log_factor(0.0), log_factor(end)
    variance = end * np.exp(k * (first - last)) + eta**2 * integral(lambda tau: np.exp(k * (first - log_factor(tau))))
    return k / 2 * integral(lambda tau: pull(tau) * np.exp(k / 2 * (first - log_factor(tau)))), variance


SCALES = [0.0, 0.5, 1.0, 2.0, 3.0, 8.0]


@pytest.mark.parametrize("scale", SCALES)
def test_the_ode_has_the_closed_forms_variance(x64, scale):
    levels = gj.levels(gj.schedules.edm(**WIDE), 8000, gj.spacings.karras())
    _, variance = ode_law(gj.cfg(scale), levels)
    np.testing.assert_allclose(variance, V_C**scale * V_U ** (1 - scale), rtol=2e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_the_ode_mean_extrapolates_linearly_for_equal_variances(x64, scale):
    """`w m_c + (1 - w) m_u`, up to the O(1 / sigma_max) that remains of the ODE's starting point."""
    levels = gj.levels(gj.schedules.edm(sigma_min=1e-3, sigma_max=1e5), 4000, gj.spacings.karras())
    branches = gaussians(3.0, 1.0, 1.0, 1.0)
    mean = gj.sample(keys(1), branches, gj.cfg(scale), gj.dpmpp_2m(), levels, jnp.zeros((1, 1)))[0, 0]
    np.testing.assert_allclose(mean, 3.0 * scale + 1.0 * (1 - scale), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_the_sde_has_the_closed_forms_variance_and_mean(x64, scale):
    """The error is of first order in the step, so Richardson's extrapolation of two runs removes the leading term."""
    (mean1, var1), (mean2, var2) = (sde_law(scale, (3.0, 1.0), steps) for steps in (2000, 4000))
    g = V_C**scale * V_U ** (1 - scale)
    variance = (V_C * V_U - V_C ** (2 * scale) * V_U ** (2 - 2 * scale)) / ((V_U - V_C) * (2 * scale - 1 or np.nan))
    if scale == 0.5:  # the limit of the formula, where numerator and denominator vanish
        variance = V_C * V_U * np.log(V_U / V_C) / (V_U - V_C)
    np.testing.assert_allclose(2 * var2 - var1, variance, rtol=1e-4)
    np.testing.assert_allclose(2 * mean2 - mean1, (3.0 * (V_U - g) + 1.0 * (g - V_C)) / (V_U - V_C), rtol=1e-4)


def test_neither_the_ode_nor_the_sde_gives_the_tilted_law(x64):
    """At w = 3 the three variances differ by far more than any tolerance above."""
    tilted = 1 / (3 / V_C - 2 / V_U)
    ode = ode_law(gj.cfg(3.0), gj.levels(gj.schedules.edm(**WIDE), 500, gj.spacings.karras()))[1]
    sde = sde_law(3.0, (0.0, 0.0), 2000)[1]
    assert abs(ode - tilted) > 0.1 * tilted
    assert abs(sde - tilted) > 0.1 * tilted
    assert abs(sde - ode) > 0.1 * tilted


@pytest.mark.parametrize(("first", "last"), [(1600, 4800), (3200, 6000)])
@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_guidance_in_an_interval_has_the_closed_forms_variance(x64, scale, first, last):
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
    """The whole score is multiplied by w. The variance is v / (2 w - 1) by SDE, and goes to 0 by ODE as sigma_max grows."""

    def power(scale):
        def update(prediction, context):
            x0 = context.x + scale * (prediction.x0 - context.x)
            return prediction.replace(x0=x0, eps=scale * prediction.eps)

        return gj.stateless(update)

    variance1, variance2 = (sde_law(scale, (0.0, 0.0), steps, power)[1] for steps in (4000, 8000))
    np.testing.assert_allclose(2 * variance2 - variance1, V_C / (2 * scale - 1), rtol=1e-3)

    def variance_by_ode(sigma_max):
        levels = gj.levels(gj.schedules.edm(1e-3, sigma_max), 2000, gj.spacings.karras())
        return ode_law(power(scale), levels)[1]

    assert variance_by_ode(1e4) < 0.02 * variance_by_ode(1e2)


def test_a_tolerance_here_would_catch_a_scale_one_percent_off(x64):
    levels = gj.levels(gj.schedules.edm(**WIDE), 2000, gj.spacings.karras())
    _, variance = ode_law(gj.cfg(3.03), levels)
    assert abs(variance / (V_C**3 / V_U**2) - 1) > 0.03


def test_the_law_of_every_eta_agrees_with_the_known_laws():
    for scale in (0.3, 1.0, 3.0, 8.0):
        sde = (V_C * V_U - V_C ** (2 * scale) * V_U ** (2 - 2 * scale)) / ((V_U - V_C) * (2 * scale - 1))
        np.testing.assert_allclose(guided_law(scale, 1.0)[1], sde, rtol=3e-5)
        np.testing.assert_allclose(guided_law(scale, 0.0)[1], V_C**scale * V_U ** (1 - scale), rtol=3e-5)


def limit(order, steps, make, value, scale, bounds=EVERYWHERE, **how):
    """The law of a sampler in the limit of many steps, by Richardson's extrapolation of two runs. The two runs share levels,
    and an interval begins and ends on shared levels.
    """
    bounds = tuple(bound * (1 + 1e-9) for bound in bounds)
    coarse, fine = (np.array(affine_law(make, value, scale, bounds, wide(n), **how)) for n in (steps, 2 * steps - 1))
    return fine + (fine - coarse) / (2**order - 1)


@pytest.mark.parametrize("interval", [None, (100, 300)], ids=["everywhere", "interval"])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
def test_heun_sde_has_the_exact_law_at_any_eta(x64, scale, interval):
    bounds = EVERYWHERE if interval is None else tuple(np.asarray(wide(500).ratio)[[interval[1], interval[0]]])
    for eta in (0.0, 0.5, 1.0, 1.5):
        exact = guided_law(scale, eta, (1.5, -0.5), *bounds)
        np.testing.assert_allclose(limit(2, 500, gj.heun_sde, eta, scale, bounds), exact, rtol=4e-4, err_msg=f"{eta=}")


@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_ddim_has_the_exact_law_at_any_eta_to_first_order(x64, scale):
    for eta in (0.6, 1.0):
        exact = guided_law(scale, eta, (1.5, -0.5))
        np.testing.assert_allclose(limit(1, 4000, gj.ddim, eta, scale), exact, rtol=2e-3, err_msg=f"{eta=}")


def test_the_stochastic_samplers_have_their_weak_order(x64):
    """Measured against the exact law, without Monte Carlo. The order is 2 for `heun_sde` and 1 for `ddim(1.0)`. At the same
    number of evaluations `heun_sde` has less than a tenth of ancestral sampling's error.
    """
    exact = guided_law(3.0, 1.0)[1]
    error = lambda make, steps: abs(affine_law(make, 1.0, 3.0, EVERYWHERE, wide(steps), means=(0.0, 0.0))[1] / exact - 1)
    for make, order in ((gj.heun_sde, 2), (gj.ddim, 1)):
        errors = np.array([error(make, steps) for steps in (400, 800)])
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1, errors
    assert error(gj.heun_sde, 200) < 0.1 * error(gj.ddim, 400)


def corrected(corrections):
    return lambda size: gj.predictor_corrector(gj.ddim(), corrections, size=size)


CORRECTED = {corrections: corrected(corrections) for corrections in (1, 4, 16)}


def test_predictor_corrector_guidance_is_ddpm_at_the_mean_of_the_scale_and_one(x64):
    """Bradley & Nakkiran 2024, the SDE limit: DDIM and one Langevin step at scale w is DDPM-CFG at (w + 1) / 2."""
    for scale in (0.5, 2.0, 5.0):
        found = limit(1, 4000, CORRECTED[1], 1.0, scale, numbers=(1,))
        np.testing.assert_allclose(found, guided_law((scale + 1) / 2, 1.0, (1.5, -0.5)), rtol=1e-3)


def test_predictor_corrector_guidance_samples_the_tilted_law_with_many_corrections(x64):
    scale, errors = 3.0, []
    precision = scale / V_C + (1 - scale) / V_U
    tilted = np.array([(scale * 1.5 / V_C + (1 - scale) * -0.5 / V_U) / precision, 1 / precision])
    for corrections, make in CORRECTED.items():
        found = limit(1, 500, make, 1.0, scale, numbers=tuple(range(1, corrections + 1)))
        errors.append(np.abs(found / tilted - 1))
    assert (errors[1] < 0.5 * errors[0]).all(), errors
    assert (errors[2] < 0.5 * errors[1]).all(), errors
    assert (errors[2] < 0.01).all(), errors


def test_gradients_in_eta_and_size_are_finite_from_alpha_zero():
    levels = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
    assert levels.alpha[0] == 0
    for make in (gj.heun_sde, CORRECTED[1]):
        run = lambda v, make=make: gj.sample(keys(1), gaussians(1.0, V_C, 0.0, V_U), gj.cfg(2.0), make(v), levels, (1,)).sum()
        assert np.isfinite(jax.jit(jax.vmap(jax.grad(run)))(jnp.array([0.0, 0.7, 1.0]))).all()


def test_without_corrections_or_with_size_zero_only_the_predictor_is_left(x64):
    levels = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
    run = lambda sampler: gj.sample(keys(3), gaussians(1.0, V_C, 0.0, V_U), gj.cfg(3.0), sampler, levels, (1,))
    unguided = gj.sample(keys(3), gaussians(1.0, V_C, 0.0, V_U), gj.chain(), gj.ddim(), levels, (1,))
    np.testing.assert_allclose(run(gj.predictor_corrector(gj.ddim(), 0)), unguided, rtol=1e-12)
    np.testing.assert_allclose(run(gj.predictor_corrector(gj.ddim(), 0, guided=True)), run(gj.ddim()), rtol=1e-12)
    for build, message in [
        (lambda: gj.predictor_corrector(gj.ddim(), -1), "at least 0, got -1"),
        (lambda: run(gj.predictor_corrector(gj.ddim(), size=jnp.ones(2))), r"size has shape \(2,\)"),
        (lambda: gj.heun_sde(-0.5), "eta"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
