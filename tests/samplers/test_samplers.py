"""Samplers against independent NumPy versions from their papers, with noise, and further properties of single samplers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_rows import MEAN_C, MEAN_U, ROWS, RUNS, SCALE, STEPS, VAR_C, VAR_U, guided, one, two_gaussians
from worlds import SCHEDULES, classes, keys, mixture, path, sampler_noise

import guidance_jax as gj


def schedule_named(name):
    return gj.schedules.flow(t_max=0.99) if name == "flow" else SCHEDULES[name]()


@functools.cache
def program(name, schedule):
    """A run of the sampler over any levels of STEPS steps, compiled once. It returns samples and evaluations."""
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
    """A run of the NumPy version. start and z may be arrays of runs."""
    pairs = [(float(a), float(s)) for a, s in zip(levels.alpha, levels.sigma, strict=True)]
    x, memory = start, None
    for n, (now, after) in enumerate(itertools.pairwise(pairs)):
        x, memory = step(denoise, x, memory, now, after, z[n])
    return x


@pytest.mark.parametrize("name", ROWS)
def test_samples_are_those_of_the_paper_for_the_same_noise(x64, name):
    row = ROWS[name]
    for schedule in row.schedules or SCHEDULES:
        levels = gj.levels(schedule_named(schedule), STEPS, gj.spacings.trailing())
        samples, evaluations = program(name, schedule if row.schedules else None)(levels)
        z0, *z = noise(levels, row.fold).T
        np.testing.assert_allclose(samples, read(row.reading, levels, levels.sigma[0] * z0, z), rtol=1e-9, err_msg=schedule)
        assert evaluations == 2 * (row.evaluations * (STEPS - 1) + 1)


@pytest.mark.parametrize("name", ROWS)
def test_the_variance_after_n_steps_is_an_exact_product(x64, name):
    """The coefficients of the start and of each step's noise are solved for from many runs. Their squares add up."""
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
    """A DDIM whose eps enters the next level with the current level's fraction of noise."""
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
def test_defects_of_other_libraries_are_detected(x64, name, defective):
    levels = gj.levels(gj.schedules.cosine(), STEPS, gj.spacings.trailing())
    z0, *z = noise(levels).T
    wrong = read(defective, levels, levels.sigma[0] * z0, z)
    assert np.abs(np.asarray(program(name, None)(levels)[0]) - wrong).min() > 1e-4


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "dpmpp_sde eta", "unipc 2", "unipc 3"])
def test_cfg_plus_plus_is_the_unconditional_step_plus_the_difference(x64, name):
    """A multistep sampler remembers the x0 that its eps implies, which is the unconditional one."""
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
def test_between_two_levels_the_network_receives_the_time_there(x64, name):
    """A denoiser that computes the level from t gives the same samples. The times here lie between the discrete steps."""
    schedule = gj.schedules.ddpm_linear()
    levels = gj.levels(schedule, STEPS, gj.spacings.trailing())
    branches, sampler = two_gaussians(RUNS, schedule), ROWS[name].make(schedule)
    samples = gj.sample(keys(RUNS), branches, gj.cfg(SCALE), sampler, levels, (1,)).ravel()
    np.testing.assert_allclose(samples, program(name, "ddpm_linear")(levels)[0], rtol=1e-9)


def test_churn_does_not_exceed_the_maximum_of_the_schedule(x64):
    schedule = gj.schedules.ddpm_linear()
    levels = path(gj.levels(schedule, STEPS, gj.spacings.trailing()), slice(None, 2))
    assert levels.t[0] == schedule.t_max
    run = lambda sampler: gj.sample(keys(3), two_gaussians(3), gj.cfg(SCALE), sampler, levels, (1,))
    np.testing.assert_allclose(run(gj.churn(gj.euler(), schedule, 0.3)), run(gj.euler()), rtol=1e-12)


def test_the_number_zero_draws_no_noise():
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


def test_samplers_that_coincide_for_some_value_give_the_same_samples(x64):
    """Euler ancestral is DDIM for every eta, and the first step of SDE is DDPM's."""
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
    """A run of the second half, from the state after the first half, ends as the whole run does."""
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
def test_bad_input_raises(build, message):
    with pytest.raises(ValueError, match=message):
        build()
