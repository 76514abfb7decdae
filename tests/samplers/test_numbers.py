"""Numbers of samplers are data: they can be traced, differentiated, and compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_rows import ROWS, SCALE, two_gaussians
from worlds import keys

import guidance_jax as gj

SCHEDULE = gj.schedules.flow()
TRACED = {
    "ddim": gj.ddim,
    "euler_ancestral": lambda v: gj.euler_ancestral(v, noise_scale=1 + v),
    "heun": lambda v: gj.churn(gj.heun(), SCHEDULE, v, noise_scale=1 + v, high=1e3),
    "dpmpp_2s": lambda v: gj.dpmpp_2s(SCHEDULE, eta=v, noise_scale=1 + v),
    "dpmpp_3m": lambda v: gj.dpmpp_3m(curvature=v),
    "dpmpp_sde": lambda v: gj.dpmpp_sde(v, noise_scale=1 + v),
}
UNTRACED = {name: ROWS[name].make(SCHEDULE) for name in ("ddpm large", "ddpm learned", "flow_heun", "unipc 3")}


def from_alpha_zero():
    levels = jax.tree.map(np.asarray, gj.levels(SCHEDULE, 5, gj.spacings.trailing()))
    assert levels.alpha[0] == 0
    assert levels.sigma[-1] == 0
    return levels


def with_gradients(summed, values):
    """The values of a function of a number and of the levels, and its slopes in the number, as one program for all numbers.
    All gradients are finite.
    """
    program = jax.jit(jax.vmap(jax.value_and_grad(summed, argnums=(0, 1)), (0, None)))
    sums, (slopes, by_level) = jax.tree.map(np.asarray, program(np.asarray(values), from_alpha_zero()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((sums, slopes, by_level)))
    return sums, slopes


@pytest.mark.parametrize("name", UNTRACED)
def test_samplers_are_finite_from_alpha_zero_to_sigma_zero_with_finite_gradients(name):
    two = two_gaussians(2)

    def summed(scale, levels):
        guidance = gj.chain(gj.cfg(scale), gj.rescale(0.5))
        return gj.sample(keys(2), two, guidance, UNTRACED[name], levels, (3,)).sum()

    with_gradients(summed, np.array([3.0], np.float32))


def test_gradient_in_the_scale_is_the_difference_quotient(x64):
    levels, two = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras()), two_gaussians(2)
    summed = lambda scale: gj.sample(keys(2), two, gj.cfg(scale), gj.unipc(3), levels, (1,)).sum()
    around, slopes = jax.jit(jax.vmap(jax.value_and_grad(summed)))(np.array([2.0 - 1e-5, 2.0, 2.0 + 1e-5]))
    np.testing.assert_allclose(slopes[1], (around[2] - around[0]) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("name", TRACED)
def test_many_values_are_one_program_and_are_finite_from_alpha_zero_with_exact_gradients(x64, name):
    two = two_gaussians(2)

    def summed(value, levels):
        return gj.sample(keys(2), two, gj.cfg(SCALE), TRACED[name](value), levels, (1,)).sum()

    h = 1e-6
    sums, slopes = with_gradients(summed, [0.4 - h, 0.4, 0.4 + h, 0.0, 0.9])
    np.testing.assert_allclose(slopes[1], (sums[2] - sums[0]) / (2 * h), rtol=1e-5)
    np.testing.assert_allclose(sums[4], jax.jit(summed)(0.9, from_alpha_zero()), rtol=1e-10)
    # The number zero, which is known, has another program: it draws nothing.
    np.testing.assert_allclose(sums[3], jax.jit(lambda levels: summed(0.0, levels))(from_alpha_zero()), rtol=1e-10)


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


@pytest.mark.parametrize("name", ["dpmpp_2s", "churn"])
def test_a_sampler_of_a_schedule_is_an_argument_of_jit(name):
    sampler = {
        "dpmpp_2s": gj.dpmpp_2s(SCHEDULES_OF_NUMBERS["shift"], eta=0.5),
        "churn": gj.churn(gj.heun(), SCHEDULES_OF_NUMBERS["ddpm_linear, its rates"], 0.2),
    }[name]
    levels = gj.levels(sampler.schedule or SCHEDULES_OF_NUMBERS["shift"], 3, gj.spacings.uniform())
    run = lambda sampler: gj.sample(keys(2), two_gaussians(2), gj.cfg(2.0), sampler, levels, (1,))
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
