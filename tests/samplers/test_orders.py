"""Orders of convergence, against a Runge-Kutta solution of the same guided flow that shares no code with the samplers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from quick import quick_keys
from worlds import classes, mixture, path

import guidance_jax as gj

LOW, HIGH, SCALE = 0.02, 20.0, 2.0
STEPS = 400
LABELS = np.arange(8) % 3


def start():
    """x / alpha of the eight samples at `sigma / alpha = HIGH`."""
    return HIGH * np.random.default_rng(3).normal(size=(8, 3))


@functools.cache
def exact():
    """The solution of the guided flow at LOW, by 4,000 classical Runge-Kutta steps of `dy / dlog(sigma) = y - x0`."""
    m, steps = mixture(), 4000
    h = np.log(LOW / HIGH) / steps

    def slope(y, log_sigma):
        level = gj.NoiseLevel(log_sigma, jnp.ones(()), jnp.exp(log_sigma))
        c, u = (m.denoise(y, level, label).x0 for label in (jnp.asarray(LABELS), jnp.full(8, -1)))
        return y - u - SCALE * (c - u)

    def step(i, y):
        s = np.log(HIGH) + i * h
        a = slope(y, s)
        b = slope(y + h / 2 * a, s + h / 2)
        c = slope(y + h / 2 * b, s + h / 2)
        return y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, s + h))

    return np.asarray(jax.jit(lambda y: jax.lax.fori_loop(0, steps, step, y))(start()))


def at(schedule, ratio):
    return schedule.at(ratio)


def even(schedule, steps, short):
    """Levels evenly spaced in log(sigma / alpha). The first step may follow two steps whose length is its square."""
    span = np.log(HIGH / LOW)
    along = np.linspace(0, span, steps + 1)
    if short:
        along = np.concatenate([[0, 1, 2], along[1:] / along[1] ** 2 * 8]) * along[1] ** 2 / 8
    return one_program(at, schedule, HIGH * np.exp(-along))


@functools.cache
def branches():
    return classes(mixture(), jnp.asarray(LABELS))


def end(guidance, sampler, levels, x):
    """The last x of a run, STEPS steps at a time. So all runs of a sampler are one program, whatever their length."""
    memory: Any = jax.tree.map(np.asarray, (sampler.init(jnp.asarray(x)), guidance.init(jnp.asarray(x))))
    zeros: Any = (np.int32(0), np.zeros_like(x), np.int32(0))
    state = gj.State(x, *memory, *zeros)
    assert (len(levels) - 1) % STEPS == 0
    for i in range(0, len(levels) - 1, STEPS):
        part = path(levels, slice(i, i + STEPS + 1))
        state, _ = one_program(gj.run, quick_keys(8), branches(), guidance, sampler, part, state)
    return state.x


def error(sampler, schedule, steps, short):
    levels = even(schedule, steps, short)
    x = end(gj.cfg(SCALE), sampler, levels, levels.alpha[0] * start())
    return np.abs(x / levels.alpha[-1] - exact()).max()


EDM, COSINE = gj.schedules.edm(), gj.schedules.cosine()
SOLVERS = {
    "ddim": (gj.ddim(), COSINE, 1),
    "heun": (gj.heun(), EDM, 2),
    "flow_heun": (gj.flow_heun(), COSINE, 2),
    "dpmpp_2s": (gj.dpmpp_2s(EDM), EDM, 2),
    "dpmpp_2m": (gj.dpmpp_2m(), COSINE, 2),
    "dpmpp_3m": (gj.dpmpp_3m(curvature=1.0), EDM, 3),
    "dpmpp_3m, as released": (gj.dpmpp_3m(curvature=0.5), EDM, 2),
    "unipc 2": (gj.unipc(), COSINE, 3),
    "unipc 3": (gj.unipc(3), EDM, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_converges_to_the_exact_solution_with_its_order(x64, name):
    sampler, schedule, order = SOLVERS[name]
    once, several = (STEPS, 2 * STEPS) if order < 3 else (STEPS - 2, 2 * STEPS - 2)
    coarse, fine = (error(sampler, schedule, n, short=order > 2) for n in (once, several))
    assert abs(np.log(coarse / fine) / np.log(several / once) - order) < 0.25, (coarse, fine)
    assert fine < {1: 1e-2, 2: 1e-4, 3: 2e-6, 4: 1e-7}[order]


@pytest.mark.parametrize("name", ["flow_heun", "dpmpp_2s"])
def test_inversion_to_noise_has_the_same_order(x64, name):
    sampler, schedule, order = SOLVERS[name]
    assert sampler.reversible

    def upward(steps):
        levels = path(even(schedule, steps, False), slice(None, None, -1))
        x = end(gj.cfg(SCALE), sampler, levels, levels.alpha[0] * exact())
        return np.abs(x / levels.alpha[-1] - start()).max()

    coarse, fine = upward(STEPS), upward(2 * STEPS)
    assert abs(np.log2(coarse / fine) - order) < 0.25, (coarse, fine)


def test_from_alpha_zero_halving_the_step_still_divides_the_error(x64):
    """From flow matching's t = 1 every sampler is finite, and those of second order have far smaller errors than those of
    first.
    """
    x = np.random.default_rng(3).normal(size=(8, 3))

    def run(sampler, steps):
        levels = gj.levels(gj.schedules.flow(LOW), steps + 1, gj.spacings.uniform())
        levels = path(jax.tree.map(np.asarray, levels), slice(None, -1))  # It ends at t_min: a jump to 0 has no order.
        assert levels.alpha[0] == 0
        return end(gj.cfg(SCALE), sampler, levels, x)

    exact = run(gj.flow_heun(), 16 * STEPS)
    first, *others = (gj.ddim(), gj.heun(), gj.flow_heun(), gj.dpmpp_2m(), gj.unipc())
    errors = {sampler: [np.abs(run(sampler, n) - exact).max() for n in (STEPS, 2 * STEPS)] for sampler in (first, *others)}
    assert 1.8 < errors[first][0] / errors[first][1] < 2.2
    for sampler in others:
        assert errors[sampler][0] / errors[sampler][1] > 3.0
        assert errors[sampler][1] < 0.15 * errors[first][1]


@pytest.mark.slow
def test_an_interval_on_step_boundaries_keeps_the_order(x64):
    """Heun's corrector follows the choice of its step. If its own level decided, the order here would be 1. Multistep samplers
    have order 1 here without `forget`, because they extrapolate across the jump.
    """
    schedule = gj.schedules.edm(LOW, HIGH)
    grid = lambda n: jax.tree.map(np.array, gj.levels(schedule, n + 1, gj.spacings.uniform()))
    coarse = grid(40).ratio
    low, high = coarse[24], coarse[12]

    def run(n, sampler):
        levels = path(grid(n), slice(None, -1))
        # Halved grids share these levels only up to rounding. They are set equal so that the bounds fall exactly on them.
        levels.sigma[[n * 24 // 40, n * 12 // 40]] = low, high
        return end(gj.during(gj.cfg(3.0), low, high), sampler, levels, start())

    exact, multistep = run(8 * STEPS, gj.heun()), gj.dpmpp_2m()
    for sampler, order in ((gj.heun(), 2), (gj.forget(multistep, low, high), 2), (multistep, 1)):
        error = np.array([np.abs(run(n, sampler) - exact).max() for n in (STEPS, 2 * STEPS)])
        assert abs(np.log2(error[0] / error[1]) - order) < 0.25, (order, error)
