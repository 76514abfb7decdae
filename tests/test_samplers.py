"""Samplers against independent NumPy readings of their papers, noise included, and their orders of convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import SCHEDULES, classes, gaussians, keys, mixture, path

import guidance_jax as gj

MEAN_C, VAR_C, MEAN_U, VAR_U, SCALE = 1.3, 0.5, -0.4, 2.0, 3.0


def denoise(x, alpha, sigma):
    """The guided x0 of the two Gaussians: `u + w (c - u)`."""

    def one(mean, variance):
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    c, u = one(MEAN_C, VAR_C), one(MEAN_U, VAR_U)
    return u + SCALE * (c - u)


def ddim(eta):
    """Song et al. 2021, equations 12 and 16, for the variance-preserving process, `a` being their alpha (our alpha^2)."""

    def step(x, memory, now, after, z):
        a, a_next = now[0] ** 2, after[0] ** 2
        x0 = denoise(x, *now)
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        s = eta * np.sqrt((1 - a_next) / (1 - a)) * np.sqrt(1 - a / a_next)
        return np.sqrt(a_next) * x0 + np.sqrt(1 - a_next - s**2) * eps + s * z, memory

    return step


def ddpm(large):
    """Ho et al. 2020, equations 6 and 7 and section 3.2, with alpha_bar = our alpha^2."""

    def step(x, memory, now, after, z):
        bar, bar_next = now[0] ** 2, after[0] ** 2
        alpha_t = bar / bar_next
        beta = 1 - alpha_t
        x0 = denoise(x, *now)
        mean = np.sqrt(bar_next) * beta / (1 - bar) * x0 + np.sqrt(alpha_t) * (1 - bar_next) / (1 - bar) * x
        variance = beta if large else (1 - bar_next) / (1 - bar) * beta
        return mean + np.sqrt(variance) * (z if bar_next < 1 else 0), memory

    return step


def heun(x, memory, now, after, z):
    """Karras et al. 2022, algorithm 1 without churn, in their coordinates x / alpha and sigma / alpha."""
    y, t, t_next = x / now[0], now[1] / now[0], after[1] / after[0]
    d = (y - denoise(y, 1.0, t)) / t
    y_next = y + (t_next - t) * d
    if t_next > 0:
        d_next = (y_next - denoise(y_next, 1.0, t_next)) / t_next
        y_next = y + (t_next - t) * (d + d_next) / 2
    return after[0] * y_next, memory


def dpmpp_2m(x, memory, now, after, z):
    """Lu et al. 2022, algorithm 2; the first and the last step of first order."""
    x0 = denoise(x, *now)
    lam = np.log(now[0] / now[1])
    if after[1] == 0:
        return after[0] * x0, memory
    h = np.log(after[0] / after[1]) - lam
    d = x0
    if memory:
        x0_last, lam_last = memory
        r = (lam - lam_last) / h
        d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_last
    return after[1] / now[1] * x - after[0] * np.expm1(-h) * d, (x0, lam)


READINGS = {
    "ddim": (gj.ddim(), ddim(0.0)),
    "ddim eta": (gj.ddim(0.6), ddim(0.6)),
    "ddim ancestral": (gj.ddim(1.0), ddim(1.0)),
    "ddpm small": (gj.ddpm("small"), ddpm(large=False)),
    "ddpm large": (gj.ddpm("large"), ddpm(large=True)),
    "heun": (gj.heun(), heun),
    "dpmpp_2m": (gj.dpmpp_2m(), dpmpp_2m),
}
VP = ["cosine", "linear", "ddpm_linear", "ddpm_cosine"]


def noise(key, steps):
    """The standard normal numbers that a run draws for one sample of shape (1,): at its start, and in every step."""
    start, *rest = (np.asarray(jax.random.normal(jax.random.fold_in(key, i), (1,)))[0] for i in range(steps + 1))
    return start, np.array(rest)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("schedule", VP)
def test_samples_are_the_papers_given_the_same_noise(x64, schedule, reading):
    sampler, step = READINGS[reading]
    steps = 9
    levels = gj.levels(SCHEDULES[schedule](), steps, gj.spacings.trailing())
    key = keys(3, seed=5)
    branches = gaussians(MEAN_C, VAR_C, MEAN_U, VAR_U)
    samples = gj.sample(key, branches, gj.cfg(SCALE), sampler, levels, (1,)).ravel()
    pairs = [(float(a), float(s)) for a, s in zip(levels.alpha, levels.sigma, strict=True)]
    for i, sample in enumerate(samples):
        z0, z = noise(key[i], steps)
        x, memory = pairs[0][1] * z0, None
        for n in range(steps):
            x, memory = step(x, memory, pairs[n], pairs[n + 1], z[n])
        np.testing.assert_allclose(sample, x, rtol=1e-10)


@pytest.mark.parametrize("reading", READINGS)
def test_n_step_variance_is_an_exact_product(x64, reading):
    """The coefficients of a run in its start and in each step's noise, solved for from many runs: their squares add up."""
    sampler, step = READINGS[reading]
    steps, runs = 7, 40
    levels = gj.levels(gj.schedules.cosine(), steps, gj.spacings.trailing())
    key = keys(runs)
    branches = gaussians(MEAN_C, VAR_C, MEAN_U, VAR_U)
    samples = gj.sample(key, branches, gj.cfg(SCALE), sampler, levels, (1,)).ravel()
    draws = [noise(k, steps) for k in key]
    design = np.array([[1.0, z0, *z] for z0, z in draws])
    coefficients, _, rank, _ = np.linalg.lstsq(design, np.asarray(samples), rcond=None)
    assert rank == steps + 2
    np.testing.assert_allclose(design @ coefficients, samples, atol=1e-10)

    pairs = [(float(a), float(s)) for a, s in zip(levels.alpha, levels.sigma, strict=True)]

    def run(start, z):
        x, memory = start, None
        for n in range(steps):
            x, memory = step(x, memory, pairs[n], pairs[n + 1], z[n])
        return x

    at_zero = run(0.0, np.zeros(steps))
    parts = [run(pairs[0][1], np.zeros(steps)) - at_zero, *(run(0.0, unit) - at_zero for unit in np.eye(steps))]
    np.testing.assert_allclose(coefficients[0], at_zero, rtol=1e-9)
    np.testing.assert_allclose(np.sum(coefficients[1:] ** 2), np.sum(np.square(parts)), rtol=1e-9)


def errors(sampler, steps, schedule=None, scale=2.0):
    """The error of a guided run at each number of steps, against many Heun steps on the same span of levels."""
    m = mixture()
    labels = jnp.arange(8) % 3
    schedule = schedule or gj.schedules.edm(0.02, 20.0)
    x = jax.random.normal(jax.random.key(3), (8, 3)) * schedule(schedule.t_max).sigma

    def run(sampler, n):
        levels = gj.levels(schedule, n, gj.spacings.uniform())
        levels = jax.tree.map(lambda field: field[:-1], levels)  # to t_min and no farther: a jump to 0 has no order
        return gj.sample(keys(8), classes(m, labels), gj.cfg(scale), sampler, levels, x)

    exact = run(gj.heun(), 6401)
    return np.array([np.abs(run(sampler, n + 1) - exact).max() for n in steps])


@pytest.mark.parametrize(
    ("sampler", "order"), [(gj.ddim(), 1), (gj.heun(), 2), (gj.dpmpp_2m(), 2)], ids=["ddim", "heun", "dpmpp_2m"]
)
@pytest.mark.parametrize("schedule", [gj.schedules.edm(0.02, 20.0), gj.schedules.cosine(0.02, 0.98)], ids=["edm", "cosine"])
def test_order_of_convergence(x64, sampler, order, schedule):
    error = errors(sampler, (200, 400, 800), schedule)
    measured = np.log2(error[:-1] / error[1:])
    assert (abs(measured - order) < 0.25).all(), measured


def test_heun_and_ddim_from_alpha_zero(x64):
    """From flow matching's t = 1 every sampler stays finite, and halving the step still divides the error."""
    schedule = gj.schedules.flow(0.02)
    ddim_error, heun_error = errors(gj.ddim(), (100, 200, 400), schedule), errors(gj.heun(), (100, 200, 400), schedule)
    assert (ddim_error[:-1] / ddim_error[1:] > 1.8).all()
    assert (heun_error[:-1] / heun_error[1:] > 3.0).all()
    assert (heun_error < 0.15 * ddim_error).all()


@pytest.mark.parametrize("reading", READINGS)
def test_finite_from_alpha_zero_to_sigma_zero_with_finite_gradients(reading):
    sampler, _ = READINGS[reading]
    levels = gj.levels(gj.schedules.flow(), 5, gj.spacings.trailing())
    assert levels.alpha[0] == 0
    assert levels.sigma[-1] == 0
    m, labels = mixture(), jnp.array([0, 1])

    def total(scale, levels):
        guidance = gj.chain(gj.cfg(scale), gj.rescale(0.5))
        return gj.sample(keys(2), classes(m, labels), guidance, sampler, levels, (3,)).sum()

    value, slopes = jax.value_and_grad(total, argnums=(0, 1))(3.0, levels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slopes)))


def test_gradient_in_the_scale_is_the_difference_quotient(x64):
    m, labels = mixture(), jnp.array([0, 1])
    levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())

    def total(scale):
        return gj.sample(keys(2), classes(m, labels), gj.cfg(scale), gj.dpmpp_2m(), levels, (3,)).sum()

    quotient = (total(2.0 + 1e-5) - total(2.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(total)(2.0), quotient, rtol=1e-6)


def test_an_interval_on_step_boundaries_keeps_the_order(x64):
    """Heun's corrector inherits its step's choice; one that chose by its own level would fall to first order here."""
    m, labels = mixture(), jnp.arange(8) % 3
    schedule = gj.schedules.edm(0.02, 20.0)
    x = jax.random.normal(jax.random.key(3), (8, 3)) * 20.0
    coarse = gj.levels(schedule, 41, gj.spacings.uniform()).ratio
    low, high = coarse[24], coarse[12]

    def run(n):
        levels = jax.tree.map(lambda field: field[:-1], gj.levels(schedule, n + 1, gj.spacings.uniform()))
        # Halved grids share these levels up to rounding: pin them, so that the bounds fall exactly on them.
        ratio = levels.sigma.at[n * 24 // 40].set(low).at[n * 12 // 40].set(high)
        return gj.sample(
            keys(8), classes(m, labels), gj.during(gj.cfg(3.0), low, high), gj.heun(), levels._replace(sigma=ratio), x
        )

    exact = run(6400)
    error = np.array([np.abs(run(n) - exact).max() for n in (200, 400, 800)])
    measured = np.log2(error[:-1] / error[1:])
    assert (abs(measured - 2) < 0.25).all(), measured


def test_all_samplers_agree_in_the_limit(x64):
    m, labels = mixture(), jnp.arange(6) % 3
    levels = gj.levels(gj.schedules.cosine(), 3000, gj.spacings.karras())
    samples = [
        gj.sample(keys(6), classes(m, labels), gj.cfg(2.0), sampler, levels, (3,))
        for sampler in (gj.ddim(), gj.heun(), gj.dpmpp_2m())
    ]
    np.testing.assert_allclose(samples[0], samples[1], atol=5e-3)
    np.testing.assert_allclose(samples[2], samples[1], atol=1e-4)


def test_a_run_may_start_midway(x64):
    """The second half of a run, from where the first half stood, ends where the whole run does."""
    m, labels = mixture(), jnp.arange(6) % 3
    levels = gj.levels(gj.schedules.cosine(), 20, gj.spacings.karras())
    first, second = path(levels, slice(None, 11)), path(levels, slice(10, None))
    for sampler in (gj.ddim(), gj.heun()):
        run = lambda levels, start, s=sampler: gj.sample(keys(6), classes(m, labels), gj.cfg(2.0), s, levels, start)
        np.testing.assert_allclose(run(second, run(first, (3,))), run(levels, (3,)), rtol=1e-12)


def test_bad_input_is_told():
    for build, message in [
        (lambda: gj.ddim(1.5), r"eta must be in \[0, 1\]"),
        (lambda: gj.ddim(jnp.zeros(3)), "scalar"),
        (lambda: gj.ddpm("medium"), "small"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
