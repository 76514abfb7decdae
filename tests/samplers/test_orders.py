"""Orders of convergence, against a Runge-Kutta solution of the same guided flow that shares no code with the samplers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import classes, keys, mixture

import guidance_jax as gj

LOW, HIGH, SCALE = 0.02, 20.0, 2.0
LABELS = jnp.arange(8) % 3


def start():
    """x / alpha of the eight samples at `sigma / alpha = HIGH`."""
    return HIGH * jax.random.normal(jax.random.key(3), (8, 3))


@functools.cache
def exact():
    """The solution of the guided flow at LOW, by 4,000 classical Runge-Kutta steps of `dy / dlog(sigma) = y - x0`."""
    m, steps = mixture(), 4000
    h = np.log(LOW / HIGH) / steps

    def slope(y, log_sigma):
        level = gj.NoiseLevel(log_sigma, jnp.ones(()), jnp.exp(log_sigma))
        c, u = (m.denoise(y, level, label).x0 for label in (LABELS, jnp.full_like(LABELS, -1)))
        return y - u - SCALE * (c - u)

    def step(i, y):
        s = np.log(HIGH) + i * h
        a = slope(y, s)
        b = slope(y + h / 2 * a, s + h / 2)
        c = slope(y + h / 2 * b, s + h / 2)
        return y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, s + h))

    return jax.jit(lambda y: jax.lax.fori_loop(0, steps, step, y))(start())


def even(schedule, steps, short):
    """Levels evenly spaced in log(sigma / alpha). The first step may follow two steps whose length is its square."""
    span = np.log(HIGH / LOW)
    along = np.linspace(0, span, steps + 1)
    if short:
        along = np.concatenate([[0, 1, 2], along[1:] / along[1] ** 2 * 8]) * along[1] ** 2 / 8
    return schedule.at(HIGH * np.exp(-along))


def error(sampler, schedule, steps, short=False):
    levels = even(schedule, steps, short)
    x = levels.alpha[0] * start()
    x = gj.sample(keys(8), classes(mixture(), LABELS), gj.cfg(SCALE), sampler, levels, x)
    return float(jnp.abs(x / levels.alpha[-1] - exact()).max())


EDM, COSINE = gj.schedules.edm(), gj.schedules.cosine()
SOLVERS = {
    "ddim": (gj.ddim(), EDM, 1),
    "ddim, cosine": (gj.ddim(), COSINE, 1),
    "heun": (gj.heun(), EDM, 2),
    "heun, cosine": (gj.heun(), COSINE, 2),
    "flow_heun": (gj.flow_heun(), COSINE, 2),
    "dpmpp_2s": (gj.dpmpp_2s(EDM), EDM, 2),
    "dpmpp_2m": (gj.dpmpp_2m(), COSINE, 2),
    "dpmpp_3m": (gj.dpmpp_3m(), EDM, 3),
    "dpmpp_3m, as released": (gj.dpmpp_3m(curvature=0.5), EDM, 2),
    "unipc 1": (gj.unipc(1), EDM, 2),
    "unipc 2": (gj.unipc(2), COSINE, 3),
    "unipc 3": (gj.unipc(3), EDM, 4),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_converges_to_the_exact_solution_with_its_order(x64, name):
    sampler, schedule, order = SOLVERS[name]
    steps = 400 if order < 3 else 200
    coarse, fine = (error(sampler, schedule, n, short=order > 2) for n in (steps, 2 * steps))
    assert abs(np.log2(coarse / fine) - order) < 0.25, (coarse, fine)
    assert fine < {1: 1e-2, 2: 1e-4, 3: 2e-6, 4: 1e-7}[order]


@pytest.mark.parametrize("name", ["flow_heun", "dpmpp_2s"])
def test_inversion_to_noise_has_the_same_order(x64, name):
    sampler, schedule, order = SOLVERS[name]
    assert sampler.reversible

    def upward(steps):
        levels = even(schedule, steps, False)[::-1]
        x = gj.sample(keys(8), classes(mixture(), LABELS), gj.cfg(SCALE), sampler, levels, levels.alpha[0] * exact())
        return float(jnp.abs(x / levels.alpha[-1] - start()).max())

    coarse, fine = upward(200), upward(400)
    assert abs(np.log2(coarse / fine) - order) < 0.25, (coarse, fine)


def test_from_alpha_zero_halving_the_step_still_divides_the_error(x64):
    """From flow matching's t = 1 every sampler is finite, and those of second order have far smaller errors than those of
    first.
    """
    x = jax.random.normal(jax.random.key(3), (8, 3))

    @functools.cache
    def run(sampler, steps):
        levels = gj.levels(gj.schedules.flow(LOW), steps + 1, gj.spacings.uniform())
        levels = levels[:-1]  # It ends at t_min, because a jump to 0 has no order.
        assert levels.alpha[0] == 0
        return gj.sample(keys(8), classes(mixture(), LABELS), gj.cfg(SCALE), sampler, levels, x)

    exact = run(gj.flow_heun(), 3200)
    first, *others = (gj.ddim(), gj.heun(), gj.flow_heun(), gj.dpmpp_2m(), gj.unipc())
    errors = {sampler: [np.abs(run(sampler, n) - exact).max() for n in (100, 200)] for sampler in (first, *others)}
    assert 1.8 < errors[first][0] / errors[first][1] < 2.2
    for sampler in others:
        assert errors[sampler][0] / errors[sampler][1] > 3.0
        assert errors[sampler][1] < 0.15 * errors[first][1]


def test_an_interval_on_step_boundaries_keeps_the_order(x64):
    """Heun's corrector follows the choice of its step. If its own level decided, the order here would be 1. Multistep samplers
    have order 1 here without `forget`, because they extrapolate across the jump.
    """
    m = mixture()
    schedule = gj.schedules.edm(LOW, HIGH)
    coarse = gj.levels(schedule, 41, gj.spacings.uniform()).ratio
    low, high = coarse[24], coarse[12]

    def run(n, sampler):
        levels = gj.levels(schedule, n + 1, gj.spacings.uniform())[:-1]
        # Halved grids share these levels only up to rounding. They are set equal so that the bounds fall exactly on them.
        ratio = levels.sigma.at[n * 24 // 40].set(low).at[n * 12 // 40].set(high)
        guidance = gj.during(gj.cfg(3.0), low, high)
        return gj.sample(keys(8), classes(m, LABELS), guidance, sampler, levels.replace(sigma=ratio), start())

    exact, multistep = run(3200, gj.heun()), gj.dpmpp_2m()
    for sampler, order in ((gj.heun(), 2), (gj.forget(multistep, low, high), 2), (multistep, 1)):
        error = np.array([np.abs(run(n, sampler) - exact).max() for n in (200, 400)])
        assert abs(np.log2(error[0] / error[1]) - order) < 0.25, (order, error)
