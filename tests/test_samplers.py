"""Samplers against independent NumPy readings of their papers, noise included, and what each of them is held to."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import readings
from worlds import SCHEDULES, classes, keys, mixture, path, sampler_noise

import guidance_jax as gj
from guidance_jax.base import Prediction

MEAN_C, VAR_C, MEAN_U, VAR_U, SCALE = 1.3, 0.5, -0.4, 2.0, 3.0
SHARE, STEPS, RUNS = 0.3, 7, 40


def one(mean, variance):
    return lambda x, alpha, sigma: mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


def guided(x, alpha, sigma):
    """The guided x0 of the two Gaussians: `u + w (c - u)`."""
    c, u = one(MEAN_C, VAR_C)(x, alpha, sigma), one(MEAN_U, VAR_U)(x, alpha, sigma)
    return u + SCALE * (c - u)


def two_gaussians(batch, schedule=None):
    """The branches of which `guided` is the CFG; each predicts a variance between the small and the large one. Given a
    schedule, they know their level by its t alone."""

    def denoise(x, level, cond):
        known = level if schedule is None else schedule(level.t)
        alpha, sigma = known.alpha, known.sigma
        x0 = one(cond[:, :1], cond[:, 1:])(x, alpha, sigma)
        return Prediction(x0, (x - alpha * x0) / sigma, jnp.full_like(x, SHARE))

    both = (MEAN_C, VAR_C), (MEAN_U, VAR_U)
    cond, uncond = (jnp.broadcast_to(jnp.array(parameters, float), (batch, 2)) for parameters in both)
    return gj.branches(denoise, cond=cond, uncond=uncond)


class Row(NamedTuple):
    make: Callable[[gj.Schedule], gj.Sampler]
    reading: Callable[..., tuple[float, object]]
    evaluations: int = 1
    """In a step that does not end at sigma' = 0; there it is one."""
    schedules: tuple[str, ...] = ()
    """Those to test it on, each a program of its own, where it is made of one."""
    fold: int | None = None
    """With what the step's keys are folded once more before it draws."""


CHURN = {"amount": 2.0 / STEPS, "low": 0.05, "high": 50.0, "noise_scale": 1.1}
EDM = {"s_churn": 2.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.1, "steps": STEPS}
ROWS = {
    "ddim": Row(lambda schedule: gj.ddim(), readings.ddim(0.0)),
    "ddim eta": Row(lambda schedule: gj.ddim(0.6), readings.ddim(0.6)),
    "ddim ancestral": Row(lambda schedule: gj.ddim(1.0), readings.ddim(1.0)),
    "ddpm small": Row(lambda schedule: gj.ddpm(), readings.ddpm(lambda beta, tilde: np.log(tilde))),
    "ddpm large": Row(lambda schedule: gj.ddpm("large"), readings.ddpm(lambda beta, tilde: np.log(beta))),
    "ddpm learned": Row(
        lambda schedule: gj.ddpm("learned"),
        readings.ddpm(lambda beta, tilde: SHARE * np.log(beta) + (1 - SHARE) * np.log(tilde)),
    ),
    "euler": Row(lambda schedule: gj.euler(), readings.edm(False)),
    "euler churn": Row(
        lambda schedule: gj.churn(gj.euler(), schedule, **CHURN), readings.edm(False, **EDM), 1, ("ddpm_linear", "edm")
    ),
    "euler_ancestral": Row(lambda schedule: gj.euler_ancestral(), readings.euler_ancestral(1.0, 1.0)),
    "euler_ancestral eta": Row(lambda schedule: gj.euler_ancestral(0.6, noise_scale=1.1), readings.euler_ancestral(0.6, 1.1)),
    "heun": Row(lambda schedule: gj.heun(), readings.edm(True), 2),
    "heun churn": Row(
        lambda schedule: gj.churn(gj.heun(), schedule, **CHURN), readings.edm(True, **EDM), 2, ("cosine", "flow")
    ),
    "flow_heun": Row(lambda schedule: gj.flow_heun(), readings.flow_heun, 2),
    "dpmpp_2s": Row(lambda schedule: gj.dpmpp_2s(schedule), readings.dpmpp_2s(), 2, ("cosine", "edm")),
    "dpmpp_2s eta": Row(
        lambda schedule: gj.dpmpp_2s(schedule, eta=0.7, noise_scale=1.1),
        readings.dpmpp_2s(0.7, 1.1),
        2,
        ("ddpm_linear", "flow"),
    ),
    "dpmpp_2m": Row(lambda schedule: gj.dpmpp_2m(), readings.dpmpp_2m),
    "dpmpp_3m": Row(lambda schedule: gj.dpmpp_3m(), readings.dpmpp_3m),
    "dpmpp_sde": Row(lambda schedule: gj.dpmpp_sde(), readings.dpmpp_sde(1.0, 1.0)),
    "dpmpp_sde eta": Row(lambda schedule: gj.dpmpp_sde(0.6, noise_scale=1.1), readings.dpmpp_sde(0.6, 1.1)),
    "heun_sde": Row(lambda schedule: gj.heun_sde(), readings.heun_sde(1.0), 2),
    "heun_sde eta": Row(lambda schedule: gj.heun_sde(0.6), readings.heun_sde(0.6), 2),
    "predictor_corrector": Row(
        lambda schedule: gj.predictor_corrector(gj.ddim(), size=0.3, guided=True), readings.predictor_corrector(0.3), 2, fold=1
    ),
    "unipc 1": Row(lambda schedule: gj.unipc(1), readings.unipc(1, 2)),
    "unipc 2": Row(lambda schedule: gj.unipc(), readings.unipc(2, 2)),
    "unipc 3": Row(lambda schedule: gj.unipc(3), readings.unipc(3, 2)),
    "unipc 3, variant 1": Row(lambda schedule: gj.unipc(3, variant=1), readings.unipc(3, 1)),
}


def schedule_named(name):
    return gj.schedules.flow(t_max=0.99) if name == "flow" else SCHEDULES[name]()


@functools.cache
def program(name, schedule):
    """A run of the sampler over any levels of STEPS steps, compiled once: samples and evaluations."""
    sampler = ROWS[name].make(schedule and schedule_named(schedule))

    @jax.jit
    def generate(levels):
        state, _ = gj.run(keys(RUNS), two_gaussians(RUNS), gj.cfg(SCALE), sampler, levels, (1,))
        return state.x.ravel(), state.evaluations

    return generate


def noise(levels, fold=None):
    """The standard normal numbers of every run, at its start and in each step: `[RUNS, STEPS + 1]`."""
    x = jnp.zeros((RUNS, 1))
    start = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (1,)))(keys(RUNS))
    return np.concatenate([start, *(sampler_noise(keys(RUNS), levels, i, x, fold) for i in range(STEPS))], axis=1)


def read(step, levels, start, z, denoise=guided):
    """A run of a reading; start and z may be arrays of runs."""
    pairs = [(float(a), float(s)) for a, s in zip(levels.alpha, levels.sigma, strict=True)]
    x, memory = start, None
    for n, (now, after) in enumerate(itertools.pairwise(pairs)):
        x, memory = step(denoise, x, memory, now, after, z[n])
    return x


@pytest.mark.parametrize("name", ROWS)
def test_samples_are_the_papers_given_the_same_noise(x64, name):
    row = ROWS[name]
    for schedule in row.schedules or SCHEDULES:
        levels = gj.levels(schedule_named(schedule), STEPS, gj.spacings.trailing())
        samples, evaluations = program(name, schedule if row.schedules else None)(levels)
        z0, *z = noise(levels, row.fold).T
        np.testing.assert_allclose(samples, read(row.reading, levels, levels.sigma[0] * z0, z), rtol=1e-9, err_msg=schedule)
        assert evaluations == 2 * (row.evaluations * (STEPS - 1) + 1)


@pytest.mark.parametrize("name", ROWS)
def test_n_step_variance_is_an_exact_product(x64, name):
    """The coefficients of a run in its start and in each step's noise, solved for from many runs: their squares add up."""
    row = ROWS[name]
    schedule, *_ = row.schedules or ("cosine",)
    levels = gj.levels(schedule_named(schedule), STEPS, gj.spacings.trailing())
    samples, _ = program(name, schedule if row.schedules else None)(levels)
    design = np.concatenate([np.ones((RUNS, 1)), noise(levels, row.fold)], 1)
    coefficients, _, rank, _ = np.linalg.lstsq(design, np.asarray(samples), rcond=None)
    assert rank == STEPS + 2
    np.testing.assert_allclose(design @ coefficients, samples, atol=1e-10)

    at_zero = read(row.reading, levels, 0.0, np.zeros(STEPS))
    by_start = read(row.reading, levels, float(levels.sigma[0]), np.zeros(STEPS)) - at_zero
    by_noise = [read(row.reading, levels, 0.0, unit) - at_zero for unit in np.eye(STEPS)]
    np.testing.assert_allclose(coefficients[0], at_zero, rtol=1e-9)
    np.testing.assert_allclose(np.sum(coefficients[1:] ** 2), np.sum(np.square([by_start, *by_noise])), rtol=1e-9)


def adjusted_ddim(denoise, x, memory, now, after, z):
    """A DDIM whose eps goes to the next level with the current level's share of noise."""
    x0 = denoise(x, *now)
    return after[0] * x0 + now[1] * (x - now[0] * x0) / now[1], memory


def heun_from_the_predicted_point(denoise, x, memory, now, after, z):
    y, t, t_next = x / now[0], now[1] / now[0], after[1] / after[0]
    d = (y - denoise(y, 1.0, t)) / t
    y_next = y + (t_next - t) * d
    if t_next > 0:
        y_next = y_next + (t_next - t) * (d + (y_next - denoise(y_next, 1.0, t_next)) / t_next) / 2
    return after[0] * y_next, memory


def heun_with_the_first_conditional_output(denoise, x, memory, now, after, z):
    y, t, t_next = x / now[0], now[1] / now[0], after[1] / after[0]
    c, d = one(MEAN_C, VAR_C)(y, 1.0, t), (y - denoise(y, 1.0, t)) / t
    y_next = y + (t_next - t) * d
    if t_next > 0:
        u = one(MEAN_U, VAR_U)(y_next, 1.0, t_next)
        y_next = y + (t_next - t) * (d + (y_next - u - SCALE * (c - u)) / t_next) / 2
    return after[0] * y_next, memory


@pytest.mark.parametrize(
    ("name", "defective"),
    [
        ("ddim", adjusted_ddim),
        ("heun", heun_from_the_predicted_point),
        ("heun", heun_with_the_first_conditional_output),
        ("ddpm learned", ROWS["ddpm small"].reading),
    ],
)
def test_defects_of_other_libraries_are_told_apart(x64, name, defective):
    levels = gj.levels(gj.schedules.cosine(), STEPS, gj.spacings.trailing())
    z0, *z = noise(levels).T
    wrong = read(defective, levels, levels.sigma[0] * z0, z)
    assert np.abs(np.asarray(program(name, None)(levels)[0]) - wrong).min() > 1e-4


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "dpmpp_sde eta", "unipc 2", "unipc 3"])
def test_cfg_plus_plus_is_the_unconditional_step_and_the_difference_beside_it(x64, name):
    """What a multistep sampler remembers is the x0 that its eps implies: the unconditional one."""
    share, step = 0.7, ROWS[name].reading
    levels = gj.levels(gj.schedules.cosine(), STEPS, gj.spacings.trailing())
    sampler = ROWS[name].make(gj.schedules.cosine())
    samples = gj.sample(keys(RUNS), two_gaussians(RUNS), gj.cfg_pp(share), sampler, levels, (1,)).ravel()
    c, u = one(MEAN_C, VAR_C), one(MEAN_U, VAR_U)

    def beside(denoise, x, memory, now, after, z):
        moved, memory = step(u, x, memory, now, after, z)
        return moved + after[0] * share * (c(x, *now) - u(x, *now)), memory

    z0, *z = noise(levels).T
    np.testing.assert_allclose(samples, read(beside, levels, levels.sigma[0] * z0, z), rtol=1e-9)


@pytest.mark.parametrize("name", ["euler churn", "dpmpp_2s eta"])
def test_between_two_levels_the_network_is_told_the_time_there(x64, name):
    """A denoiser that knows the level by its t alone gives the same samples: here at times between the discrete steps."""
    schedule = gj.schedules.ddpm_linear()
    levels = gj.levels(schedule, STEPS, gj.spacings.trailing())
    branches, sampler = two_gaussians(RUNS, schedule), ROWS[name].make(schedule)
    samples = gj.sample(keys(RUNS), branches, gj.cfg(SCALE), sampler, levels, (1,)).ravel()
    np.testing.assert_allclose(samples, program(name, "ddpm_linear")(levels)[0], rtol=1e-9)


def test_churn_goes_no_higher_than_the_schedule(x64):
    schedule = gj.schedules.ddpm_linear()
    levels = path(gj.levels(schedule, STEPS, gj.spacings.trailing()), slice(None, 2))
    assert levels.t[0] == schedule.t_max
    run = lambda sampler: gj.sample(keys(3), two_gaussians(3), gj.cfg(SCALE), sampler, levels, (1,))
    np.testing.assert_allclose(run(gj.churn(gj.euler(), schedule, 0.3)), run(gj.euler()), rtol=1e-12)


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
def test_finite_from_alpha_zero_to_sigma_zero_with_finite_gradients(name):
    def summed(scale, levels):
        guidance = gj.chain(gj.cfg(scale), gj.rescale(0.5))
        return gj.sample(keys(2), two_gaussians(2), guidance, UNTRACED[name], levels, (3,)).sum()

    value, slopes = jax.value_and_grad(summed, argnums=(0, 1))(3.0, from_alpha_zero())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slopes)))


@pytest.mark.parametrize("name", TRACED)
def test_one_trace_for_many_values_finite_from_alpha_zero_with_exact_gradients(x64, name):
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


def test_a_plain_zero_draws_nothing():
    levels = gj.levels(gj.schedules.cosine(), 3, gj.spacings.trailing())
    schedule = gj.schedules.cosine()
    still = [gj.ddim(), gj.euler(), gj.churn(gj.euler(), schedule, 0), gj.heun(), gj.euler_ancestral(0), gj.dpmpp_sde(0)]
    still.append(gj.dpmpp_2s(schedule))
    run = lambda sampler: lambda x: gj.sample(keys(2), two_gaussians(2), gj.cfg(2.0), sampler, levels, x)
    for sampler, draws in [*((sampler, False) for sampler in still), (gj.euler_ancestral(0.1), True)]:
        assert ("random_bits" in str(jax.make_jaxpr(run(sampler))(jnp.ones((2, 1))))) == draws
    assert gj.euler().reversible
    assert gj.dpmpp_2s(schedule).reversible
    assert gj.churn(gj.heun(), schedule, 0.0).reversible
    assert not gj.churn(gj.heun(), schedule, 0.1).reversible
    own = gj.Sampler(lambda x: (), gj.heun().step)
    assert repr(gj.churn(own, schedule, 0.0)) == "churn(a Sampler, cosine(), amount=0.0)"
    assert own.call is None


def test_samplers_that_are_one_at_some_value(x64):
    """Euler ancestral is DDIM at every eta, and of SDE the first step is DDPM's."""
    levels = gj.levels(gj.schedules.cosine(), STEPS, gj.spacings.karras())
    run = lambda sampler, levels=levels: gj.sample(keys(3), two_gaussians(3), gj.cfg(SCALE), sampler, levels, (1,))
    for same, as_this in [
        (gj.euler(), gj.ddim()),
        (gj.euler_ancestral(0.6), gj.ddim(0.6)),
        (gj.euler_ancestral(), gj.ddpm()),
        (gj.dpmpp_sde(0), gj.dpmpp_2m()),
    ]:
        np.testing.assert_allclose(run(same), run(as_this), rtol=1e-10)
    first = path(levels, slice(None, 2))
    np.testing.assert_allclose(run(gj.dpmpp_sde(), first), run(gj.ddpm(), first), rtol=1e-10)


def test_a_run_may_start_midway(x64):
    """The second half of a run, from where the first half stood, ends where the whole run does."""
    m, labels = mixture(), jnp.arange(6) % 3
    levels = gj.levels(gj.schedules.cosine(), 20, gj.spacings.karras())
    first, second = path(levels, slice(None, 11)), path(levels, slice(10, None))
    for sampler in (gj.ddim(), gj.dpmpp_2s(gj.schedules.cosine())):
        run = lambda levels, start, s=sampler: gj.sample(keys(6), classes(m, labels), gj.cfg(2.0), s, levels, start)
        np.testing.assert_allclose(run(second, run(first, (3,))), run(levels, (3,)), rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gj.ddim(1.5), r"ddim: eta must be a number in \[0, 1\]"),
        (lambda: gj.ddim(jnp.zeros(3)), "scalar"),
        (lambda: gj.ddpm("medium"), "small"),
        (lambda: gj.churn(gj.heun(), gj.schedules.edm(), -0.1), r"churn: amount must be a number in \[0, inf\), got -0.1"),
        (lambda: gj.churn(gj.heun(), gj.schedules.edm(), jnp.ones(2)), "scalar"),
        (
            lambda: gj.churn(gj.heun(), gj.schedules.edm(), 0.1, 2.0, 1.0),
            "churn: low must be at most high, got low 2.0 and high 1.0",
        ),
        (lambda: gj.euler_ancestral(-1.0), "euler_ancestral: eta"),
        (lambda: gj.dpmpp_2s(gj.schedules.edm(), noise_scale=-1.0), "dpmpp_2s: noise_scale"),
        (lambda: gj.dpmpp_sde(jnp.ones(2)), "dpmpp_sde: eta"),
        (lambda: gj.dpmpp_3m(curvature=-1.0), "dpmpp_3m: curvature"),
        (lambda: gj.unipc(4), "order must be 1, 2 or 3, got 4"),
        (lambda: gj.unipc(2, variant=3), "variant must be 1 or 2, got 3"),
    ],
)
def test_bad_input_is_told(build, message):
    with pytest.raises(ValueError, match=message):
        build()


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
    """Its numbers are traced there and its functions called again, but for what is computed with in float64 beforehand."""
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


def centred(x):
    return x - x.mean(1, keepdims=True)


def points(n, count=5):
    """Clouds of points whose network keeps the centre of mass at 0: of `N(0, 1 / 2)` in that subspace."""

    def denoise(x, level, cond):
        x0 = level.alpha * 0.5 / (level.alpha**2 * 0.5 + level.sigma**2) * x
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return gj.branches(denoise, cond=None), (count, 3)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun_sde", "churn", "recur", "dpmpp_2m"])
def test_a_projected_point_cloud_keeps_zero_centre_of_mass(x64, name):
    schedule = gj.schedules.cosine()
    project = lambda sampler: gj.projected(sampler, centred)
    sampler = {
        "ddim": project(gj.ddim()),
        "ddpm": project(gj.ddpm()),
        "heun_sde": project(gj.heun_sde()),
        "churn": project(gj.churn(project(gj.heun()), schedule, 0.2)),
        "recur": project(gj.recur(project(gj.ddim()), 2)),
        "dpmpp_2m": project(gj.dpmpp_2m()),
    }[name]
    branches, shape = points(4)
    levels = gj.levels(schedule, 5, gj.spacings.karras())
    x, along = gj.sample(keys(4), branches, gj.chain(), sampler, levels, shape, trace=lambda state: state.x)
    np.testing.assert_allclose(along.mean(2), 0, atol=1e-12)
    np.testing.assert_allclose(x.mean(1), 0, atol=1e-12)
    assert (x.std((1, 2)) > 0.05).all()


def test_the_noise_of_a_projected_sampler_is_standard_normal_in_the_subspace(x64):
    """So the law is that of the subspace: its variance, (N - 1) / N of the variance per coordinate, is the exact one."""
    branches, shape = points(2000)
    levels = gj.levels(gj.schedules.cosine(), 60, gj.spacings.karras())
    x = gj.sample(keys(2000), branches, gj.chain(), gj.projected(gj.heun_sde(), centred), levels, shape)
    plain = centred(gj.sample(keys(2000), branches, gj.chain(), gj.heun_sde(), levels, shape))
    np.testing.assert_allclose(x, plain, atol=1e-12)
    covariance = jnp.einsum("bid,bjd->ij", x, x) / (3 * 2000)
    np.testing.assert_allclose(covariance, 0.5 * (jnp.eye(5) - 1 / 5), atol=0.04)
    np.testing.assert_allclose(jnp.trace(covariance) / 5, 0.4, atol=0.015)


@pytest.mark.parametrize(
    ("project", "error", "message"),
    [
        (lambda x: x[:, :2], ValueError, r"projected: what project returns must be \[2, 5, 3\], got float32\[2,2,3\]"),
        (
            lambda x: x.astype(int),
            TypeError,
            r"projected: what project returns must be an array of float32 numbers.*got int32\[2,5,3\]",
        ),
        (lambda x: None, TypeError, "projected: what project returns must be an array of float32 numbers.*got None"),
        (lambda x, level: x, TypeError, r"projected: project must take \(x\), but .* takes \(x, level\)"),
        (1.0, TypeError, "projected: project must be a function, got the float 1.0"),
    ],
)
def test_a_projection_that_is_none_is_told(project, error, message):
    branches, shape = points(2)
    levels = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())
    with pytest.raises(error, match=message):
        gj.sample(keys(2), branches, gj.chain(), gj.projected(gj.ddim(), project), levels, shape)
