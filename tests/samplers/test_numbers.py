"""Numbers of samplers are data: they can be traced, differentiated, and compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_keys
from sampler_rows import ROWS, SCALE, two_gaussians
from worlds import path

import guidance_jax as gj

SCHEDULE = gj.schedules.flow()
OF_A_NUMBER = {
    "ddim": gj.ddim,
    "euler_ancestral": lambda v: gj.euler_ancestral(v, noise_scale=1 + v),
    "heun": lambda v: gj.churn(gj.heun(), SCHEDULE, v, noise_scale=1 + v, high=1e3),
    "dpmpp_2s": lambda v: gj.dpmpp_2s(SCHEDULE, eta=v, noise_scale=1 + v),
    "dpmpp_sde": lambda v: gj.dpmpp_sde(v, noise_scale=1 + v),
}
OTHERS = {name: ROWS[name].make(SCHEDULE) for name in ("ddpm large", "ddpm learned", "flow_heun")}
"""Their number here is the scale of the guidance."""


def from_alpha_zero():
    levels = jax.tree.map(np.asarray, gj.levels(SCHEDULE, 5, gj.spacings.trailing()))
    assert levels.alpha[0] == 0
    assert levels.sigma[-1] == 0
    return levels


def check_slopes(program, given, sums_of_zero):
    """Evaluates `value_and_grad` of a function of a number and more at several numbers. All gradients are finite, those in the
    number are the difference quotients, and the number zero, where it is known, gives the same sums.
    """
    h = 1e-6
    values = np.array([0.4 - h, 0.4, 0.4 + h, 0.0])
    (_, sums), (slopes, others) = jax.tree.map(np.asarray, program(values, *given))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((sums, slopes, others)))
    known = jax.tree.map(np.asarray, sums_of_zero(*given))
    for name in sums:
        quotient = (sums[name][2] - sums[name][0]) / (2 * h)
        np.testing.assert_allclose(slopes[name][1], quotient, rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.abs(quotient).max() > 1e-3, name
        if name in known:
            np.testing.assert_allclose(sums[name][3], known[name], rtol=1e-10, err_msg=name)


@pytest.mark.slow
def test_a_step_of_every_sampler_is_finite_from_alpha_zero_to_sigma_zero_with_exact_gradients(x64):
    """From alpha = 0, between two levels, and to sigma = 0. The number zero draws nothing where it is known."""
    levels, two, x = from_alpha_zero(), two_gaussians(2), jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))
    steps = path(levels, np.array([0, 2, 4])), path(levels, np.array([1, 3, 5]))

    def sums(values, level, after):
        found = {}
        for name, value in values.items():
            guidance = gj.cfg(1 + value if name in OTHERS else SCALE)
            denoise = gj.guide(two, guidance, gj.Step(jnp.int32(0), level, after, quick_keys(2)))
            sampler = OTHERS[name] if name in OTHERS else OF_A_NUMBER[name](value)
            state = gj.State(x, sampler.init(x), guidance.init(x), jnp.int32(0), jnp.zeros_like(x))
            found[name] = sampler.step(denoise, state, level, after, quick_keys(2, 1)).x.sum()
        return found

    def total(value, level, after):
        found = sums(value, level, after)
        return sum(found.values()), found

    gradient = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)

    @jax.jit
    def program(values, level, after):
        found, (slopes, *others) = jax.vmap(jax.vmap(gradient, (None, 0, 0)), (0, None, None))(values, level, after)
        return found, (slopes, others)

    @jax.jit
    def known(level, after):
        return jax.vmap(lambda *step: sums(dict.fromkeys(OF_A_NUMBER, 0.0), *step))(level, after)

    check_slopes(lambda values, *step: program(dict.fromkeys(NAMES, values), *step), steps, known)


NAMES = (*OF_A_NUMBER, *OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp_3m", "unipc 3"])
def test_a_run_with_memory_is_finite_from_alpha_zero_to_sigma_zero_with_exact_gradients(x64, name):
    two = two_gaussians(2)

    def total(values, levels):
        value = values[name]
        sampler, scale = (gj.unipc(3), 1 + value) if name == "unipc 3" else (gj.dpmpp_3m(curvature=value), SCALE)
        found = gj.sample(quick_keys(2), two, gj.cfg(scale), sampler, levels, (3,)).sum()
        return found, {name: found}

    gradient = jax.jit(jax.vmap(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), (0, None)))
    known = jax.jit(lambda levels: total({name: 0.0}, levels)[1])
    check_slopes(lambda values, levels: gradient({name: values}, levels), (from_alpha_zero(),), known)


SCHEDULES_OF_NUMBERS = {
    "edm": gj.schedules.edm(),
    "edm, its ends": gj.schedules.edm(0.01, 50.0),
    "linear": gj.schedules.linear(0.1, 18.0),
    "shift": gj.schedules.shift(gj.schedules.flow(t_max=0.99), 3.0),
    "ddpm_linear": gj.schedules.ddpm_linear(),
    "ddpm_linear, its rates": gj.schedules.ddpm_linear(500, 1e-4, 0.02),
    "discrete": gj.schedules.discrete(np.linspace(1e-4, 0.02, 100)),
    "zero_terminal_snr": gj.schedules.zero_terminal_snr(gj.schedules.scaled_linear()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES_OF_NUMBERS)
def test_a_schedule_is_an_argument_of_jit(name):
    """Its numbers are traced and its functions are called again, except for values that are computed in float64 beforehand."""
    schedule = SCHEDULES_OF_NUMBERS[name]
    ratio = jnp.asarray(np.geomspace(0.05, 20, 5), jnp.float32)

    def every(schedule):
        level = schedule.at(ratio)
        return schedule.t_min, schedule.t_max, level, schedule(level.t), schedule.inverse(ratio)

    closed, given = jax.jit(lambda: every(schedule))(), jax.jit(every)(schedule)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), given, closed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp_2s", "churn"])
def test_a_sampler_of_a_schedule_is_an_argument_of_jit(name):
    sampler = {
        "dpmpp_2s": gj.dpmpp_2s(SCHEDULES_OF_NUMBERS["shift"], eta=0.5),
        "churn": gj.churn(gj.heun(), SCHEDULES_OF_NUMBERS["ddpm_linear, its rates"], 0.2),
    }[name]
    levels = gj.levels(sampler.schedule or SCHEDULES_OF_NUMBERS["shift"], 3, gj.spacings.uniform())
    run = lambda sampler: gj.sample(quick_keys(2), two_gaussians(2), gj.cfg(2.0), sampler, levels, (1,))
    np.testing.assert_allclose(jax.jit(run)(sampler), jax.jit(lambda: run(sampler))(), rtol=1e-5)


def test_numbers_of_samplers_are_data_and_counts_are_not():
    leaves = lambda part: jax.tree.leaves(part)
    assert leaves(gj.churn(gj.heun(), gj.schedules.edm(0.01, 50.0), 0.2, high=jnp.inf)) == [0.01, 50.0, 0.2, jnp.inf]
    assert leaves(gj.recur(gj.ddim(0.5), 3, 0.1)) == [0.5, 0.1]
    assert leaves(gj.churn(gj.heun(), gj.schedules.ddpm_linear(500, 1e-4), 0.2)) == [0.2]
    assert leaves(gj.unipc(3, variant=1)) == leaves(gj.ddim(0.0)) == leaves(gj.euler_ancestral(0)) == []
    assert gj.ddim(0.5) == gj.ddim(0.5) != gj.ddim(0.6)
    shape = jax.tree.structure
    assert shape(gj.ddim(0.5)) == shape(gj.ddim(0.6)) != shape(gj.ddim(0.0))
    assert shape(gj.unipc(2)) != shape(gj.unipc(3))
    assert repr(gj.churn(gj.heun(), gj.schedules.edm(), 0.2)) == "churn(heun(), edm(), amount=0.2)"
    assert repr(gj.forget(gj.dpmpp_2m(), 0.5, 5.0)) == "forget(dpmpp_2m(), 0.5, 5.0)"
