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
from walks import gaussian
from worlds import keys, path

import guidance_jax as gj

V_C, V_U = 0.5, 2.0
WIDE = {"sigma_min": 1e-3, "sigma_max": 1e3}
EVERYWHERE = (0.0, 1e9)
FINE = 8001
"""The number of steps of the finest path. The coarser paths are parts of it, so that all share their programs."""


def gaussians(batch, means, variances=(V_C, V_U)):
    column = lambda value: jnp.full((batch, 1), value, float)
    cond, uncond = ((column(mean), column(variance)) for mean, variance in zip(means, variances, strict=True))
    return gj.branches(gaussian, cond=cond, uncond=uncond)


def power(scale):
    """The whole score times the scale."""

    def update(prediction, context):
        x0 = context.x + scale * (prediction.x0 - context.x)
        return prediction.replace(x0=x0, eps=scale * prediction.eps)

    return gj.stateless(update)


def plain(scale, _):
    return gj.cfg(scale)


def powered(scale, _):
    return power(scale)


def gated(scale, bounds):
    return gj.during(gj.cfg(scale), *bounds)


@functools.cache
def ode_laws(make, sampler):
    """A program: mean and variance of a deterministic sampler's output from N(0, sigma_max^2), for each scale."""

    def law(scale, levels, means, variances, bounds):
        two, guidance = gaussians(2, means, variances), make(scale, bounds)
        zero, one = gj.sample(keys(2), two, guidance, sampler, levels, jnp.array([[0.0], [1.0]])).ravel()
        return zero, ((one - zero) * levels.sigma[0]) ** 2

    return jax.jit(jax.vmap(law, in_axes=(0, None, None, None, None)))


def by_2m(scales, levels, means=(0.0, 0.0), variances=(V_C, V_U), make=plain):
    return ode_laws(make, gj.dpmpp_2m())(np.array(scales), levels, np.array(means), np.array(variances), EVERYWHERE)


def by_heun(scales, levels, bounds=EVERYWHERE):
    return ode_laws(gated, gj.heun())(np.array(scales), levels, np.zeros(2), np.array([V_C, V_U]), np.array(bounds))


def draws(key, numbers=()):
    """The noise of a step: drawn from its keys, or from its keys folded with each number."""
    draw = jax.vmap(lambda key: jax.random.normal(key, (1,))[0])
    if not numbers:
        return draw(key)[:, None]
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return jax.vmap(lambda i: draw(fold(key, i)), out_axes=1)(jnp.array(numbers))


@functools.cache
def affine_laws(make, method=gj.cfg, numbers=()):
    """A program: mean and variance of the output of a sampler, `make(value)`, for each value and scale. Each of its steps is
    affine, `x' = a x + b + sum_j s_j z_j`. The coefficients are solved for from as many rows as there are coefficients.
    """
    rows = max(len(numbers), 1) + 2

    def law(value, scale, bounds, levels, steps, means):
        sampler, branches, guidance = make(value), gaussians(rows, means), gj.during(method(scale), *bounds)
        key = keys(rows, seed=1)
        start = jnp.linspace(-1.0, 1.0, rows)[:, None]
        inverse = jnp.linalg.inv(jnp.concatenate([start, jnp.ones((rows, 1)), draws(key, numbers)], axis=1))

        def step(i, law):
            level, after = path(levels, i), path(levels, i + 1)
            state = gj.State(start, sampler.init(start), guidance.init(start), jnp.int32(0), jnp.zeros_like(start))
            denoise = gj.guide(branches, guidance, gj.Step(jnp.int32(0), level, after, key))
            found = inverse @ sampler.step(denoise, state, level, after, key).x[:, 0]
            a, b, s = found[0], found[1], found[2:]
            return a * law[0] + b, a**2 * law[1] + (s**2).sum()

        return jax.lax.fori_loop(0, steps, step, (jnp.zeros(()), levels.sigma[0] ** 2))

    return jax.jit(jax.vmap(law, in_axes=(0, 0, None, None, None, None)))


def law(make, value, scale, steps, bounds=EVERYWHERE, means=(1.5, -0.5), **how):
    """Mean and variance, each for every value and scale, `[2, n]`."""
    value, scale = np.broadcast_arrays(np.asarray(value, float), np.asarray(scale, float))
    shape, (levels, steps) = scale.shape, padded(steps)
    found = affine_laws(make, **how)(value.ravel(), scale.ravel(), np.array(bounds), levels, steps, np.array(means))
    return np.stack([np.asarray(each).reshape(shape) for each in found])


@functools.cache
def fine(sigma_max=WIDE["sigma_max"]):
    return gj.levels(gj.schedules.edm(WIDE["sigma_min"], sigma_max), FINE, gj.spacings.karras())


def padded(steps):
    """The path of so many steps among the levels of the finest path, padded to its length, and its number of steps."""
    stride, rest = divmod(FINE - 1, steps - 1)
    assert rest == 0
    at = np.full(FINE + 1, FINE)
    at[:steps] = stride * np.arange(steps)
    return jax.tree.map(lambda field: field[at], fine()), steps


def ancestral(_):
    return gj.ddpm()


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


def limit(order, steps, make, value, scale, bounds=EVERYWHERE, **how):
    """The law of a sampler in the limit of many steps, by Richardson's extrapolation of two runs. The two runs share levels,
    and an interval begins and ends on shared levels.
    """
    bounds = tuple(bound * (1 + 1e-9) for bound in bounds)
    coarse, fine = (law(make, value, scale, n, bounds, **how) for n in (steps, 2 * steps - 1))
    return fine + (fine - coarse) / (2**order - 1)


def exact(scale, eta, *rest):
    """`guided_law`, for each scale and eta."""
    return np.stack(np.vectorize(lambda w, e: guided_law(w, e, *rest), otypes=[float, float])(scale, eta))


SCALES = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 8.0])


def test_the_ode_has_the_closed_forms_variance(x64):
    _, variance = by_2m(SCALES, fine())
    np.testing.assert_allclose(variance, V_C**SCALES * V_U ** (1 - SCALES), rtol=2e-4)


def test_the_ode_mean_extrapolates_linearly_for_equal_variances(x64):
    """`w m_c + (1 - w) m_u`, up to the O(1 / sigma_max) that remains of the ODE's starting point."""
    mean, _ = by_2m(SCALES, fine(1e5), (3.0, 1.0), (1.0, 1.0))
    np.testing.assert_allclose(mean, 3.0 * SCALES + 1.0 * (1 - SCALES), rtol=2e-4, atol=1e-4)


def test_the_sde_has_the_closed_forms_variance_and_mean(x64):
    """The error is of first order in the step, so Richardson's extrapolation of two runs removes the leading term."""
    mean, variance = limit(1, 2001, ancestral, 0.0, SCALES, means=(3.0, 1.0))
    g = V_C**SCALES * V_U ** (1 - SCALES)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = (V_C * V_U - V_C ** (2 * SCALES) * V_U ** (2 - 2 * SCALES)) / ((V_U - V_C) * (2 * SCALES - 1))
    # The limit of the formula, where numerator and denominator vanish.
    wanted[SCALES == 0.5] = V_C * V_U * np.log(V_U / V_C) / (V_U - V_C)
    np.testing.assert_allclose(variance, wanted, rtol=1e-4)
    np.testing.assert_allclose(mean, (3.0 * (V_U - g) + 1.0 * (g - V_C)) / (V_U - V_C), rtol=1e-4)


def test_neither_the_ode_nor_the_sde_gives_the_tilted_law(x64):
    """At w = 3 the three variances differ by far more than any tolerance above."""
    tilted = 1 / (3 / V_C - 2 / V_U)
    ode = by_2m(SCALES, fine())[1][4]
    sde = law(ancestral, 0.0, SCALES, 2001, means=(0.0, 0.0))[1][4]
    assert abs(ode - tilted) > 0.1 * tilted
    assert abs(sde - tilted) > 0.1 * tilted
    assert abs(sde - ode) > 0.1 * tilted


@pytest.mark.parametrize(("first", "last"), [(1600, 4800), (3200, 6000)])
def test_guidance_in_an_interval_has_the_closed_forms_variance(x64, first, last):
    hi, lo = np.asarray(fine().ratio)[[first, last]]
    scales = np.array([0.5, 3.0, 8.0])
    _, variance = by_heun(scales, fine(), (lo, hi))
    share = (V_C + lo**2) * (V_U + hi**2) / ((V_C + hi**2) * (V_U + lo**2))
    np.testing.assert_allclose(variance, V_C * share ** (scales - 1), rtol=2e-4)


@pytest.mark.parametrize("schedule", ["edm", "cosine", "linear", "flow"])
def test_the_law_does_not_depend_on_the_schedule(x64, schedule):
    bounds = {
        "edm": lambda: gj.schedules.edm(0.01, 100.0),
        "cosine": lambda: gj.schedules.cosine(*np.arctan([0.01, 100.0]) * 2 / np.pi),
        "linear": lambda: gj.schedules.linear(t_min=1e-3, t_max=0.958),
        "flow": lambda: gj.schedules.flow(0.01 / 1.01, 100 / 101),
    }
    levels = gj.levels(bounds[schedule](), FINE, gj.spacings.karras(sigma_min=0.01, sigma_max=100.0))
    scales = np.array([0.5, 3.0, 8.0])
    _, variance = by_heun(scales, levels)
    np.testing.assert_allclose(variance, V_C**scales * V_U ** (1 - scales), rtol=1e-3)


def test_a_scaled_score_is_not_a_temperature(x64):
    """The whole score is multiplied by w. The variance is v / (2 w - 1) by SDE, and goes to 0 by ODE as sigma_max grows."""
    scales = np.array([2.0, 4.0])
    _, variance = limit(1, 4001, ancestral, 0.0, scales, means=(0.0, 0.0), method=power)
    np.testing.assert_allclose(variance, V_C / (2 * scales - 1), rtol=1e-3)
    by_ode = lambda sigma_max: by_2m(scales, fine(sigma_max), make=powered)[1]
    assert (by_ode(1e4) < 0.02 * by_ode(1e2)).all()


def test_a_tolerance_here_would_catch_a_scale_one_percent_off(x64):
    _, variance = by_2m(1.01 * SCALES, fine())
    assert abs(variance[4] / (V_C**3 / V_U**2) - 1) > 0.03


def test_the_law_of_every_eta_agrees_with_the_known_laws():
    for scale in (0.3, 1.0, 3.0, 8.0):
        sde = (V_C * V_U - V_C ** (2 * scale) * V_U ** (2 - 2 * scale)) / ((V_U - V_C) * (2 * scale - 1))
        np.testing.assert_allclose(guided_law(scale, 1.0)[1], sde, rtol=3e-5)
        np.testing.assert_allclose(guided_law(scale, 0.0)[1], V_C**scale * V_U ** (1 - scale), rtol=3e-5)


@pytest.mark.parametrize("interval", [None, (100, 300)], ids=["everywhere", "interval"])
def test_heun_sde_has_the_exact_law_at_any_eta(x64, interval):
    ratio = np.asarray(fine().ratio)[:: (FINE - 1) // 500]
    bounds = EVERYWHERE if interval is None else (ratio[interval[1]], ratio[interval[0]])
    scale, eta = np.meshgrid([0.5, 2.0, 8.0], [0.0, 0.5, 1.0, 1.5])
    found = limit(2, 501, gj.heun_sde, eta, scale, bounds)
    np.testing.assert_allclose(found, exact(scale, eta, (1.5, -0.5), *bounds), rtol=4e-4)


def test_ddim_has_the_exact_law_at_any_eta_to_first_order(x64):
    scale, eta = np.meshgrid([0.5, 8.0], [0.6, 1.0])
    np.testing.assert_allclose(limit(1, 4001, gj.ddim, eta, scale), exact(scale, eta, (1.5, -0.5)), rtol=2e-3)


def test_the_stochastic_samplers_have_their_weak_order(x64):
    """Measured against the exact law, without Monte Carlo. The order is 2 for `heun_sde` and 1 for `ddim(1.0)`. At the same
    number of evaluations `heun_sde` has less than a tenth of ancestral sampling's error.
    """
    exact = guided_law(3.0, 1.0)[1]
    error = lambda make, steps: abs(law(make, 1.0, 3.0, steps, means=(0.0, 0.0))[1] / exact - 1)
    for make, order in ((gj.heun_sde, 2), (gj.ddim, 1)):
        errors = np.array([error(make, steps) for steps in (401, 801)])
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1, errors
    assert error(gj.heun_sde, 201) < 0.1 * error(gj.ddim, 401)


def corrected(corrections):
    return lambda size: gj.predictor_corrector(gj.ddim(), corrections, size=size)


CORRECTED = {corrections: corrected(corrections) for corrections in (1, 4, 16)}


def test_predictor_corrector_guidance_is_ddpm_at_the_mean_of_the_scale_and_one(x64):
    """Bradley & Nakkiran 2024, the SDE limit: DDIM and one Langevin step at scale w is DDPM-CFG at (w + 1) / 2."""
    scale = np.array([0.5, 2.0, 5.0])
    found = limit(1, 4001, CORRECTED[1], 1.0, scale, numbers=(1,))
    np.testing.assert_allclose(found, exact((scale + 1) / 2, 1.0, (1.5, -0.5)), rtol=1e-3)


@pytest.mark.slow
def test_predictor_corrector_guidance_samples_the_tilted_law_with_many_corrections(x64):
    scale, errors = 3.0, []
    precision = scale / V_C + (1 - scale) / V_U
    tilted = np.array([(scale * 1.5 / V_C + (1 - scale) * -0.5 / V_U) / precision, 1 / precision])
    for corrections, make in CORRECTED.items():
        found = limit(1, 501, make, 1.0, scale, numbers=tuple(range(1, corrections + 1)))
        errors.append(np.abs(found / tilted - 1))
    assert (errors[1] < 0.5 * errors[0]).all(), errors
    assert (errors[2] < 0.5 * errors[1]).all(), errors
    assert (errors[2] < 0.01).all(), errors


def few(guidance, sampler, batch=3):
    levels = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
    return gj.sample(keys(batch), gaussians(batch, (1.0, 0.0)), guidance, sampler, levels, (1,))


@pytest.mark.slow
def test_gradients_in_eta_and_size_are_finite_from_alpha_zero():
    assert gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()).alpha[0] == 0
    for make in (gj.heun_sde, CORRECTED[1]):
        run = lambda v, make=make: few(gj.cfg(2.0), make(v), 1).sum()
        assert np.isfinite(jax.jit(jax.vmap(jax.grad(run)))(np.array([0.0, 0.7, 1.0], np.float32))).all()


def test_without_corrections_or_with_size_zero_only_the_predictor_is_left(x64):
    run = lambda sampler: few(gj.cfg(3.0), sampler)
    unguided = few(gj.chain(), gj.ddim())
    np.testing.assert_allclose(run(gj.predictor_corrector(gj.ddim(), 0)), unguided, rtol=1e-12)
    np.testing.assert_allclose(run(gj.predictor_corrector(gj.ddim(), size=0.0)), unguided, rtol=1e-9)
    np.testing.assert_allclose(run(gj.predictor_corrector(gj.ddim(), 0, guided=True)), run(gj.ddim()), rtol=1e-12)
    for build, message in [
        (lambda: gj.predictor_corrector(gj.ddim(), -1), "at least 0, got -1"),
        (lambda: run(gj.predictor_corrector(gj.ddim(), size=jnp.ones(2))), r"size has shape \(2,\)"),
        (lambda: gj.heun_sde(-0.5), "eta"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
