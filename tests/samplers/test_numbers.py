"""Numbers of samplers are data: they can be traced, differentiated, and compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_rows import ROWS, SCALE, two_gaussians
from worlds import classes, keys, mixture

import guidance_jax as gj

SCHEDULE = gj.schedules.flow()
TRACED = {
    "ddim": gj.ddim,
    "euler": lambda v: gj.churn(gj.euler(), SCHEDULE, v, noise_scale=1 + v, high=1e3),
    "euler_ancestral": lambda v: gj.euler_ancestral(v, noise_scale=1 + v),
    "heun": lambda v: gj.churn(gj.heun(), SCHEDULE, v, noise_scale=1 + v, high=1e3),
    "dpmpp_2s": lambda v: gj.dpmpp_2s(SCHEDULE, eta=v, noise_scale=1 + v),
    "dpmpp_3m": lambda v: gj.dpmpp_3m(curvature=v),
    "dpmpp_sde": lambda v: gj.dpmpp_sde(v, noise_scale=1 + v),
}
UNTRACED = {name: ROWS[name].make(SCHEDULE) for name in ("ddpm large", "ddpm learned", "flow_heun", "dpmpp_2m", "unipc 3")}


def from_alpha_zero():
    levels = gj.levels(SCHEDULE, 5, gj.spacings.trailing())
    assert levels.alpha[0] == 0
    assert levels.sigma[-1] == 0
    return levels


@pytest.mark.parametrize("name", UNTRACED)
def test_samplers_are_finite_from_alpha_zero_to_sigma_zero_with_finite_gradients(name):
    def summed(scale, levels):
        guidance = gj.chain(gj.cfg(scale), gj.rescale(0.5))
        return gj.sample(keys(2), two_gaussians(2), guidance, UNTRACED[name], levels, (3,)).sum()

    value, slopes = jax.value_and_grad(summed, argnums=(0, 1))(3.0, from_alpha_zero())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slopes)))


@pytest.mark.parametrize("name", TRACED)
def test_many_values_share_one_trace_and_are_finite_from_alpha_zero_with_exact_gradients(x64, name):
    traces, levels, branches = [], from_alpha_zero(), two_gaussians(2)

    def summed(value, levels):
        return gj.sample(keys(2), branches, gj.cfg(SCALE), TRACED[name](value), levels, (1,)).sum()

    @jax.jit
    def generate(value, levels):
        traces.append(1)
        return jax.value_and_grad(summed, argnums=(0, 1))(value, levels)

    h = 1e-6
    values = jnp.array([0.0, 0.4 - h, 0.4, 0.4 + h, 0.9])
    sums, (slopes, by_level) = jax.tree.map(lambda *parts: jnp.stack(parts), *[generate(value, levels) for value in values])
    assert len(traces) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((sums, slopes, by_level)))
    np.testing.assert_allclose(slopes[2], (sums[3] - sums[1]) / (2 * h), rtol=1e-5)
    together = jax.jit(jax.vmap(lambda value: summed(value, levels)))(values)
    np.testing.assert_allclose(together, sums, rtol=1e-10)
    np.testing.assert_allclose(sums[0], summed(0.0, levels), rtol=1e-10)


def test_gradient_in_the_scale_is_the_difference_quotient(x64):
    m, labels, h = mixture(), jnp.array([0, 1]), 1e-5
    levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())
    summed = lambda scale: gj.sample(keys(2), classes(m, labels), gj.cfg(scale), gj.unipc(3), levels, (3,)).sum()
    around, slopes = jax.vmap(jax.value_and_grad(summed))(jnp.array([2.0 - h, 2.0, 2.0 + h]))
    np.testing.assert_allclose(slopes[1], (around[2] - around[0]) / (2 * h), rtol=1e-6)


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
def test_a_sampler_of_a_schedule_is_an_argument_of_jit(name):
    """Its numbers are traced and its functions are called again, except for values that are computed in float64 beforehand."""
    schedule = SCHEDULES_OF_NUMBERS[name]
    levels = gj.levels(schedule, 3, gj.spacings.uniform())
    run = lambda sampler: gj.sample(keys(2), two_gaussians(2), gj.cfg(2.0), sampler, levels, (1,))
    for sampler in (gj.dpmpp_2s(schedule, eta=0.5), gj.churn(gj.heun(), schedule, 0.2)):
        closed = jax.jit(lambda sampler=sampler: run(sampler))()
        np.testing.assert_allclose(jax.jit(run)(sampler), closed, rtol=1e-5)
        np.testing.assert_allclose(run(sampler), closed, rtol=1e-5)


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
